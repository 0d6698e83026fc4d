"""Check and time training on one GPU: the page docs/gpu.md.

    python -m benchmarks gpu [--quick] [--write]

The programs of one training take turns, each in a process of its own. A unit is UNIT steps, after which the host waits for the
device once: it may run ahead of the device meanwhile, as in a training.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_checks, plain
from benchmarks.alternating import Candidate, Case, compete, numbered, value_of
from benchmarks.measurements import Suite
from benchmarks.scaling import Cost, count
from benchmarks.steps import CONFIGS, VARIANTS, config_of, prepare
from gan.training.cuda_graph import step_function
from gan.utils.tables import markdown_table

log = logging.getLogger(__name__)
UNIT = 20  # steps between two waits for the device
COMPILED = ("SN", "MSN")  # compiling takes a minute for each network
# Programs of one training: whose step, and its settings.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain loop, float32": ("plain_steps", {}),
    "plain loop, bf16": ("plain_steps", {"bf16": True}),
    "plain loop, bf16, compiled": ("plain_steps", {"bf16": True, "compiled": True}),
    "ours, float32": ("our_steps", {"precision": "fp32"}),
    "ours, bf16": ("our_steps", {"precision": "bf16"}),
    "ours, bf16, compiled": ("our_steps", {"precision": "bf16", "form": "compile"}),
    "ours, float32, CUDA graph": ("our_steps", {"precision": "fp32", "form": "cuda_graph"}),
    "ours, bf16, CUDA graph": ("our_steps", {"precision": "bf16", "form": "cuda_graph"}),
}


def _units(step: Callable[[int], Any], unit: int) -> Case:
    """Return a case of ``unit`` steps and one wait; its value is the last loss of D."""

    def case(number: int) -> float:
        for index in range(unit):
            loss = step(number * unit + index)
        return float(loss)

    return numbered(case)


def our_steps(
    norm: str, d_batches: str, images: str, batch: int, device: str, precision: str, unit: int, form: str | None = None
) -> Case:
    """Take steps of a run of configs/cifar10_*.yaml in the ``form`` compile or cuda_graph, None: in eager mode."""
    config = config_of(norm, precision, images, batch, d_batches, *([f"training.{form}=true"] if form else []))
    state, stream, context = prepare(config, cpu=device == "cpu")
    take = step_function(state, stream, context)
    return _units(lambda number: take(number)["d_loss"], unit)


def plain_steps(
    norm: str, images: str, batch: int, device: str, unit: int, *, bf16: bool = False, compiled: bool = False
) -> Case:
    """Take steps of plain.py, which waits for the device at each of them, as such loops do when they print losses."""
    torch.manual_seed(0)
    loop = plain.Loop(norm, Path(images), batch, bf16=bf16, device=device, compiled=compiled)
    return _units(lambda _: loop.step()[0], unit)


def report(suite: Suite, device: str = "cuda") -> str:
    """Return the page's tables: checks, images a second, share of the roofline. Failed checks are noted in ``suite``."""
    roof = value_of(Candidate("benchmarks.gpu:roofline", {"device": device}))
    products = f"{roof['flops'] / 1e12:.1f} TFLOP/s in a bf16 matrix product, {roof['full_flops'] / 1e12:.1f} in a float32 one"
    tables = [f"Measured here: {products}, {roof['bytes'] / 1e9:.0f} GB/s in a copy."]
    tables.append(markdown_table(["check", "result"], _timed("checks", lambda: gpu_checks.run(suite, device))))
    rates, shares = [], []
    for name in VARIANTS:
        found = _timed(name, lambda name=name: _images_per_second(suite, name, device))  # type: ignore[misc]
        rates += [(name, form, f"{rate:,.0f}", f"{rate / found['plain loop, float32']:.2f}") for form, rate in found.items()]
        best = max((form for form in found if form.startswith("ours, bf16")), key=found.__getitem__)
        least = least_seconds(_cost(name, suite.batch), roof)
        updates = 5 if name == "WGAN-GP" else 1
        shares.append((name, best, f"{1e3 * least:.2f} ms", f"{least * found[best] / (suite.batch * updates):.2f}"))
    tables.append(markdown_table(["training", "program", "real images a second", "over the plain loop"], rates))
    tables.append(markdown_table(["training", "fastest program in bf16", "least time of a step", "share"], shares))
    return "\n\n".join(tables)


def roofline(device: str) -> Case:
    """Measure what the device reaches: FLOP/s of a matrix product in bf16 and in float32, and bytes a second of a copy."""
    size = 8192 if device != "cpu" else 256

    def case() -> dict[str, float]:
        source = torch.randn(size, size, device=device)
        target, half = torch.empty_like(source), source.bfloat16()
        product, full_product = _best_seconds(lambda: half @ half, device), _best_seconds(lambda: source @ source, device)
        copy = _best_seconds(lambda: target.copy_(source), device)
        work = 2 * size**3
        return {"flops": work / product, "full_flops": work / full_product, "bytes": 2 * source.nbytes / copy}

    return case


def _best_seconds(work: Callable[[], Any], device: str, rounds: int = 10) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return min(once() for _ in range(rounds + 1))


def least_seconds(cost: Cost, roof: dict[str, float]) -> float:
    """Return the least time of a step in bf16, which halves the bytes; a gradient penalty stays in float32: docs/scaling.md."""
    arithmetic = (cost.flops - cost.penalty_flops) / roof["flops"] + cost.penalty_flops / roof["full_flops"]
    return max(arithmetic, (cost.bytes + cost.penalty_bytes) / 2 / roof["bytes"])


def _cost(name: str, batch: int) -> Cost:
    norm, d_batches = VARIANTS[name]
    return count(CONFIGS[norm], batch, d_batches)


def _images_per_second(suite: Suite, name: str, device: str) -> dict[str, float]:
    """Return real images a second of each program that computes the training ``name``."""
    norm, d_batches = VARIANTS[name]
    unit = UNIT if device != "cpu" else 1
    common = {"norm": norm, "batch": suite.batch, "device": device, "unit": unit}
    candidates = {}
    for form, (function, settings) in FORMS.items():
        compiled = "compiled" in form
        if (compiled and (name not in COMPILED or suite.quick)) or (norm == "none" and "graph" in form):
            continue
        if function == "plain_steps":
            own = {**common, **settings, "images": str(suite.folder())}
        else:
            own = {**common, **settings, "images": str(suite.archive()), "d_batches": d_batches}
        candidates[form] = Candidate(f"benchmarks.gpu:{function}", own)
    timings = compete(candidates, rounds=suite.rounds(1, 7))
    updates = 5 if norm == "none" else 1
    return {form: suite.batch * updates * unit / timing.median for form, timing in timings.items()}


def _timed(what: str, work: Callable[[], Any]) -> Any:
    began = time.monotonic()
    found = work()
    log.info(f"{what}: {time.monotonic() - began:.0f} s")
    return found
