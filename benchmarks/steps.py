"""Measure a training step against a plain loop, against its arithmetic alone, and without the allocator's setting."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import plain
from benchmarks.alternating import ROOT, Candidate, Case, compete, numbered
from benchmarks.measurements import Row, Suite, speed_up
from gan.config import GanConfig, load_config
from gan.data.datasets import load_images
from gan.data.stream import BatchStream
from gan.models.dcgan import Discriminator, Generator
from gan.models.losses import discriminator_loss, generator_loss, gradient_penalty
from gan.models.norms import SpectralNorm
from gan.runs.folder import computes_in_bf16, resolve
from gan.training.context import GanContext
from gan.training.gan_state import GanState, build_state
from gan.training.gan_step import discriminator_logits, train_step
from gan.training.health import DivergenceMonitor
from gan.utils.distributed import make_accelerator

CONFIGS = {"spectral": "cifar10_sngan", "mean_spectral": "cifar10_msngan_written", "none": "cifar10_wgan_gp"}
# Trainings by their name in the table: norm of D, and training.d_batches.
VARIANTS = {
    "SN": ("spectral", "auto"),
    "MSN": ("mean_spectral", "joint_quarter"),  # what auto takes
    "MSN joint": ("mean_spectral", "joint"),
    "MSN separate": ("mean_spectral", "separate"),
    "WGAN-GP": ("none", "auto"),
}
QUICK = ("SN", "MSN")  # WGAN-GP alone takes a minute
PLAIN = {"float32": "plain loop (torch, DataLoader, float32)", "bf16": "plain loop in bf16 autocast"}
SYSTEM = "ours, float32, system allocator"
# Losses near 1 of the same weights: float32 sums in another order, some tens of layers deep, differ by tens of 6e-8.
LOSSES = 1e-5


def precisions() -> dict[str, str]:
    """Return the precisions to measure: their names in the table and as settings. bf16 only where the processor has it."""
    return {"float32": "fp32"} | ({"bf16": "bf16"} if computes_in_bf16(torch.device("cpu")) else {})


def prepare(config: GanConfig, *, cpu: bool = False) -> tuple[GanState, BatchStream, GanContext]:
    """Return the state, batches and context of a run with ``config`` before its first step. Nothing is written."""
    accelerator = make_accelerator("cpu" if cpu else None)
    images = load_images(config.data)
    config = resolve(config, images.channels, accelerator.device)
    context = GanContext.of(config, accelerator)
    memory = images.decode_all(lambda items, _total, _what: items)
    stream = BatchStream(images, memory, config=config, shard=context.shard, device=context.device)
    return build_state(context), stream, context


def config_of(norm: str, precision: str, images: str, batch: int, d_batches: str, *more: str) -> GanConfig:
    """Return the settings of a run of configs/cifar10_*.yaml on ``images``, with ``more`` as key=value."""
    overrides = ["data.name=folder", f"data.path={images}", f"training.precision={precision}", f"training.batch_size={batch}"]
    overrides += [f"training.d_batches={d_batches}", *more]
    return load_config(ROOT / "configs" / f"{CONFIGS[norm]}.yaml", overrides)


def ours(norm: str, precision: str, images: str, batch: int = 64, d_batches: str = "auto") -> Case:
    """Take a step of a run of configs/cifar10_*.yaml, with the check for numbers that are not finite."""
    state, stream, context = prepare(config_of(norm, precision, images, batch, d_batches))
    monitor = DivergenceMonitor(context.device, context.config.health.max_grad_norm)

    def case(number: int) -> float:
        metrics = train_step(state, stream, number, context)
        monitor.note(number + 1, metrics)
        return float(metrics["d_loss"])

    return numbered(case)


def plain_loop(norm: str, images: str, batch: int = 64, precision: str = "fp32") -> Case:
    """Take a step of plain.py."""
    torch.manual_seed(0)
    return plain.Loop(norm, Path(images), batch, bf16=precision == "bf16").step


class _Arithmetic(TorchDispatchMode):
    """Record the convolutions and matrix products of the block, those of backward passes included, as calls."""

    KEPT = ("aten::convolution", "aten::convolution_backward", "aten::addmm", "aten::mm")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name() in self.KEPT:
            self.calls.append(partial(function, *args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def bare(norm: str, precision: str, batch: int = 64, d_batches: str = "auto") -> Case:
    """Compute only the convolutions and dense layers of a step, forward and backward, in our layout and dtype.

    Gradients that the step does not need are left out. WGAN-GP's penalty is computed in float32, as in the step.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    g, d, full = generator_like().to(dtype), discriminator_like("none").to(dtype), discriminator_like("none")
    z = torch.randn(batch, plain.LATENT, dtype=dtype)
    real, fake = (torch.randn(batch, 3, 32, 32).to(dtype, memory_format=torch.channels_last) for _ in range(2))
    updates = 5 if norm == "none" else 1
    with _Arithmetic() as d_update:
        with torch.no_grad():
            g(z)  # fakes for D
        for images in (real, fake) if d_batches == "separate" else (torch.cat([real, fake]),):
            d(images).sum().backward()
        if norm == "none":
            gradient_penalty(full, real.float(), fake.float(), torch.rand(batch)).backward()
    d.requires_grad_(False)
    beside = {"joint": real, "joint_quarter": real[::4]}.get(d_batches, real[:0])
    with _Arithmetic() as g_update:
        d(torch.cat([beside, g(z)])).sum().backward()
    calls = updates * d_update.calls + g_update.calls

    def case() -> int:
        for call in calls:
            call()
        return len(calls)

    return case


def generator_like() -> nn.Module:
    return Generator(latent_dim=plain.LATENT, channels=64, image_channels=3, image_size=32, norm="batch").to(
        memory_format=torch.channels_last
    )


def discriminator_like(norm: str) -> nn.Module:
    return Discriminator(channels=64, image_channels=3, image_size=32, norm=norm).to(memory_format=torch.channels_last)


def agreement(norm: str, batch: int = 64) -> float:
    """Return the largest relative difference between our float32 losses and the plain loop's, of the same weights and images."""
    torch.manual_seed(0)
    theirs_g, theirs_d = plain.initialise(plain.generator()), plain.initialise(plain.discriminator(norm))
    ours_g, ours_d = generator_like(), discriminator_like(norm)
    for theirs, mine in ((theirs_g, ours_g), (theirs_d, ours_d)):
        with torch.no_grad():
            for a, b in zip(_weighted(theirs), _weighted(mine), strict=True):
                b.weight.copy_(a.parametrizations.weight.original if hasattr(a, "parametrizations") else a.weight)
                if b.bias is not None and a.bias is not None:
                    b.bias.copy_(a.bias)
    with torch.no_grad():
        # Both power iterations converge to the same sigma. torch's does one iteration on each access of a weight.
        for module in ours_d.modules():
            if isinstance(module, SpectralNorm):
                module.power_iteration(500)
        for layer in _weighted(theirs_d):
            for _ in range(500):
                _ = layer.weight
    real, z, epsilon = torch.rand(batch, 3, 32, 32) * 2 - 1, torch.randn(2, batch, plain.LATENT), torch.rand(batch)
    fake = ours_g(z[0]).detach()
    loss = "wgan-gp" if norm == "none" else "sngan"
    found_d = discriminator_loss(loss, *discriminator_logits(ours_d, real, fake, joint=norm != "mean_spectral"))
    found_g = generator_loss(loss, ours_d(ours_g(z[1])))
    if norm == "none":
        found_d = found_d + 10 * gradient_penalty(ours_d, real, fake, epsilon)
        expected_d = plain.wgan_gp_d_loss(theirs_d, real, theirs_g(z[0]).detach(), epsilon)
        expected_g = plain.wgan_g_loss(theirs_d, theirs_g(z[1]))
    else:
        expected_d = plain.d_loss(theirs_d, real, theirs_g(z[0]).detach())
        expected_g = plain.g_loss(theirs_d, theirs_g(z[1]))
    return max(float((a / b - 1).detach().abs()) for a, b in ((found_d, expected_d), (found_g, expected_g)))


def _weighted(network: nn.Module) -> list[Any]:
    """Return convolutions and dense layers in the order of the forward pass."""
    return [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]


def lines(suite: Suite) -> list[Row]:
    """Return the speed-ups of a step over the plain loop and the system's allocator, and its share of arithmetic."""
    equal = {}
    for norm in CONFIGS:
        batches = " with separate batches" if norm == "mean_spectral" else ""
        equal[norm] = suite.check(f"losses at the same weights and images{batches} equal", agreement(norm), LOSSES)
    found = []
    for name in QUICK if suite.quick else VARIANTS:
        found += _lines(suite, name, equal[VARIANTS[name][0]])
    return found


def _lines(suite: Suite, name: str, equal: str) -> list[Row]:
    norm, d_batches = VARIANTS[name]
    common = {"norm": norm, "batch": suite.batch}

    def step_of(precision: str, keep_blocks: bool = True) -> Candidate:
        settings = {**common, "d_batches": d_batches, "precision": precision, "images": str(suite.archive())}
        return Candidate("benchmarks.steps:ours", settings, keep_blocks)

    candidates = {} if suite.quick and name != "SN" else {SYSTEM: step_of("fp32", keep_blocks=False)}
    for shown, precision in precisions().items():
        own = {**common, "precision": precision}
        plain_settings = {**own, "images": str(suite.folder())}
        candidates[PLAIN[shown]] = Candidate("benchmarks.steps:plain_loop", plain_settings, keep_blocks=False)
        candidates[f"ours, {shown}"] = step_of(precision)
        candidates[f"arithmetic alone, {shown}"] = Candidate("benchmarks.steps:bare", {**own, "d_batches": d_batches})
    timings = compete(candidates, rounds=suite.rounds(2, 15))

    def line(what: str, fast: str, slow: str, check: str, goal: str) -> Row:
        return speed_up(suite.sized(f"{what}, {name}"), timings, fast, slow, check, goal)

    found = [line("training step", "ours, float32", PLAIN["float32"], equal, "≥ 1.3")]
    if "bf16" in precisions():
        found.append(line("training step, auto", "ours, bf16", PLAIN["float32"], equal, "≥ 2.0"))
        found.append(line("training step, auto", "ours, bf16", PLAIN["bf16"], equal, "≥ 1.3"))
    for shown in precisions():
        what, same = f"share of arithmetic, {shown}", "same shapes, layout and dtype"
        found.append(line(what, f"ours, {shown}", f"arithmetic alone, {shown}", same, "≥ 0.87"))
    if SYSTEM in timings:
        peaks = " and ".join(f"{timings[name].peak_mb:,.0f} MB" for name in ("ours, float32", SYSTEM))
        found.append(line("allocator alone", "ours, float32", SYSTEM, peaks, ""))
    return found
