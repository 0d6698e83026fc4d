"""Checks that a GPU computes what a CPU computes, resumes exactly, and takes the same steps in each form.

Each program runs in a process of its own (``compete``), since the processes of a run share one device.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from benchmarks.alternating import Candidate, Case, value_of
from benchmarks.measurements import Suite
from benchmarks.steps import prepare
from eval.extractors import load_extractor
from gan.config import load_config
from gan.models.norms import BatchNorm
from gan.runs import checkpoints
from gan.training.cuda_graph import GraphedStep, step_function
from gan.training.gan_state import restore, snapshot
from gan.utils.cli import find_config

log = logging.getLogger(__name__)
# Small networks with large weights and learning rates, so that a wrong gradient shows after a few steps.
SMALL = [
    "data.name=digits", "model.latent_dim=8", "model.init_std=0.2",
    "model.generator.channels=8", "model.discriminator.channels=8", "training.batch_size=16",
    "training.ema_decay=0.9", "optimizer.d_lr=0.001", "optimizer.g_lr=0.001",
]  # fmt: skip
TRAININGS = {
    "SN": ["model.discriminator.norm=spectral"],
    "MSN": ["model.discriminator.norm=mean_spectral"],
    "WGAN-GP (BN)": ["loss.name=wgan-gp", "model.discriminator.norm=batch", "training.d_steps=2"],
    "hinge, SN, RMSprop": ["loss.name=hinge", "model.discriminator.norm=spectral", "optimizer.name=rmsprop"],
}
STEPS = 8  # more than a graph's warm-up
# Largest relative differences from a CPU: sums in another order, and in bf16 other roundings of activations.
BOUNDS = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.1}
EAGER, GRAPH = FORMS = ("training.cuda_graph=false", "training.cuda_graph=true")
WHOLE = "without a stop, "
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """A short training. With ``interrupt``, it is saved to ``folder`` after so many steps and resumed from there."""

    settings: Sequence[str]
    steps: int = STEPS
    interrupt: int = 0
    folder: str = ""


@dataclass(frozen=True)
class Trained:
    values: Floats  # (steps, 4): losses and gradient norms of D and G
    weights: Floats  # of the generator that is sampled
    captured: bool  # whether the steps were replayed as a CUDA graph


def trainings(device: str, jobs: Mapping[str, Job]) -> Case:
    """Train each of ``jobs``; the value has a Trained under the name of each."""
    return lambda: {name: _train(device, job) for name, job in jobs.items()}


def _train(device: str, job: Job) -> Trained:
    config = load_config(find_config("digits_msngan"), [*SMALL, *job.settings])
    state, stream, context = prepare(config, cpu=device == "cpu")
    take = step_function(state, stream, context)
    values = []
    for number in range(job.steps):
        if job.interrupt and number == job.interrupt:
            checkpoints.save(Path(job.folder), snapshot(state, number, context.config, ""), keep=1)
            state, stream, context = prepare(config, cpu=device == "cpu")
            found = checkpoints.newest(Path(job.folder), log.warning)
            assert found is not None
            restore(state, found)
            take = step_function(state, stream, context)
        metrics = take(number)
        values.append([float(metrics[name]) for name in ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm")])
    weights = torch.cat([p.detach().flatten().double().cpu() for p in state.best_generator.parameters()])
    return Trained(np.array(values), weights.numpy(), isinstance(take, GraphedStep) and take.captured)


def features(device: str) -> Case:
    """Extract features of 64 random images by efficientnet-lite0."""
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = load_extractor("efficientnet-lite0", device=device)
    return lambda: extractor(images)[0]


def synchronised_batch_norm(device: str) -> Case:
    """Return the largest difference between SyncBatchNorm's kernels, in a group of one process, and torch's batch norm."""
    from torch.nn.modules._functions import SyncBatchNorm

    def case() -> float:
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        try:
            norm = BatchNorm(8).to(device)
            x = torch.randn(16, 8, 4, 4, device=device)
            expected = torch.nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
            arguments = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, 0.1, dist.group.WORLD, 1)
            return float((SyncBatchNorm.apply(x, *arguments) - expected).detach().abs().max())
        finally:
            dist.destroy_process_group()

    return case


def run(suite: Suite, device: str) -> list[tuple[str, str]]:
    """Return what each check compares, and its result in words. Failures are noted in ``suite``.

    A quick run leaves out torch.compile, which takes minutes, and resumes in float32, since a processor without bf16 takes
    ten times as long in it.
    """
    found: list[tuple[str, str]] = []

    def note(what: str, difference: float, bound: float) -> None:
        found.append((what, suite.check(what, difference, bound)))

    equal, forms = _equal_jobs(), _form_jobs(compiled=not suite.quick)
    resumed = _resumed_jobs(suite.place, "fp32" if suite.quick else "bf16")
    made = "benchmarks.gpu_checks:trainings"
    here: dict[str, Trained] = value_of(Candidate(made, {"device": device, "jobs": equal | resumed | forms}))
    on_cpu: dict[str, Trained] = value_of(Candidate(made, {"device": "cpu", "jobs": equal}))
    for what in equal:
        note(
            f"losses and gradients of {what}, on {device} and on cpu",
            _relative(here[what], on_cpu[what]),
            BOUNDS[what.rpartition(" ")[2]],
        )
    for what, job in resumed.items():
        if job.interrupt:
            whole = here[WHOLE + what.rpartition(" ")[2]]
            note(f"weights {what}, and without a stop", float(np.abs(here[what].weights - whole.weights).max()), 0.0)
    for what in forms:
        name, _, form = what.partition(", ")
        if form != EAGER:
            note(
                f"losses and gradients of {what}, and in eager mode",
                _relative(here[what], here[f"{name}, {EAGER}"]),
                BOUNDS["fp32"],
            )
        if form == GRAPH and device != "cpu":
            note(f"{what}: steps not captured", float(not here[what].captured), 0.0)
    ours, theirs = (value_of(Candidate("benchmarks.gpu_checks:features", {"device": d})) for d in (device, "cpu"))
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    note(f"features of efficientnet-lite0, on {device} and on cpu", difference, 1e-3)
    if device != "cpu":  # its kernels are for GPUs
        candidate = Candidate("benchmarks.gpu_checks:synchronised_batch_norm", {"device": device})
        note("outputs of SyncBatchNorm in a group of one process, and of batch norm", value_of(candidate), 1e-5)
    return found


def _equal_jobs() -> dict[str, Job]:
    """Return trainings whose losses and gradients are the same on every device. In bf16 the difference grows with each step."""
    return {
        f"{name}, {precision}": Job([*settings, f"training.precision={precision}"], 1 if precision == "bf16" else 4)
        for name, settings in TRAININGS.items()
        for precision in BOUNDS
    }


def _resumed_jobs(place: Path, precision: str) -> dict[str, Job]:
    """Return trainings with and without a stop in the warm-up of a graph or after it. Checkpoints go below ``place``."""
    msn, jobs = [*TRAININGS["MSN"], f"training.precision={precision}"], {}
    for form in FORMS:
        jobs[WHOLE + form] = Job([*msn, form])
        for stop in (2, STEPS - 2):
            jobs[f"resumed at step {stop}, {form}"] = Job([*msn, form], interrupt=stop, folder=str(place / f"{form}{stop}"))
    return jobs


def _form_jobs(*, compiled: bool) -> dict[str, Job]:
    """Return trainings in eager mode, as CUDA graphs and, if wanted, compiled."""
    forms = (*FORMS, "training.compile=true") if compiled else FORMS
    return {
        f"{name}, {form}": Job([*TRAININGS[name], "training.precision=fp32", form]) for name in ("SN", "MSN") for form in forms
    }


def _relative(a: Trained, b: Trained) -> float:
    return float(np.abs(a.values / b.values - 1).max())
