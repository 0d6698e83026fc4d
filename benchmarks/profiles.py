"""Where the time of D's update and of a whole training step goes, from torch's profiler."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.alternating import Case
from benchmarks.norms import NAMES, training_step
from benchmarks.steps import VARIANTS, ours, precisions
from gan.utils.tables import markdown_table

GROUPS = {  # the first group with a part of an operation's name has that operation
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("convolution",),
    "batch norm": ("batch_norm",),
    "activations": ("leaky_relu", "clamp_min", "threshold", "tanh", "softplus"),
    "optimiser": ("adam", "Adam"),
    "products: dense layers, convolutions with large weights, sums over a batch": ("addmm", "::mm", "linear"),
    "copies and casts": ("copy_", "_to_copy", "clone", "contiguous"),
}
OTHER = "means, sums, corrections and other passes"


def milliseconds(case: Case, repeats: int = 5) -> dict[str, float]:
    """Return the milliseconds of a unit of ``case`` by group of operations, from torch's profiler."""
    case()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            case()
    found = dict.fromkeys([*GROUPS, OTHER], 0.0)
    for event in profiler.key_averages():
        group = next((group for group, parts in GROUPS.items() if any(part in event.key for part in parts)), OTHER)
        found[group] += event.self_cpu_time_total / 1000 / repeats
    return found


def bandwidth() -> float:
    """Return the bytes a second, read and written, of a copy much larger than the caches."""
    source = torch.randn(64, 1024, 1024)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return 2 * source.numel() * 4 / sorted(times)[2]


def bound(norm: str, rate: float, batch: int = 64) -> float:
    """Return the milliseconds of the memory passes that ``norm`` adds to the convolutions at ``rate`` bytes a second.

    A step has two batches. BN reads its input twice and writes it; backward it reads the input and its gradient twice and
    writes one. MSN averages its input; backward it reads and writes the gradient of its input or, where that is larger,
    reads the gradient of its output twice and writes it once.
    """
    values = 0
    for x, y, shrinks in _SIZES:
        if norm == "batch":
            values += 8 * y
        elif norm == "mean_spectral":
            values += x + (3 * y if shrinks else 2 * x if x > 3 * 1024 else 0)
    return 2 * batch * values * 4 / rate * 1000


# Number of values of an image before and after each convolution, and whether the convolution halves the side.
_SIZES = [
    (3 * 1024, 64 * 1024, False), (64 * 1024, 64 * 256, True), (64 * 256, 128 * 256, False), (128 * 256, 128 * 64, True),
    (128 * 64, 256 * 64, False), (256 * 64, 256 * 16, True), (256 * 16, 512 * 16, False),
]  # fmt: skip


def tables(images: str) -> str:
    """Return tables of milliseconds by group of operations: of D's float32 update by norm, and of whole steps on ``images``."""
    rate = bandwidth()
    updates = {name: milliseconds(training_step(norm, "fp32")) for norm, name in NAMES.items()}
    bounds = ["passes of the norm at that bandwidth", *(f"{bound(norm, rate):.1f}" for norm in NAMES)]
    found = [f"a copy moves {rate / 1e9:.1f} GB/s", _table("D's update, float32", updates, bounds)]
    for shown, precision in precisions().items():
        whole = {name: milliseconds(ours(norm, precision, images, d_batches=form)) for name, (norm, form) in VARIANTS.items()}
        found.append(_table(f"training step, {shown}", whole))
    return "\n\n".join(found)


def _table(what: str, found: Mapping[str, Mapping[str, float]], *more: Sequence[str]) -> str:
    rows = [[group, *(f"{own[group]:.1f}" for own in found.values())] for group in [*GROUPS, OTHER]]
    rows.append(["all", *(f"{sum(own.values()):.1f}" for own in found.values())])
    return markdown_table([what, *found], [*rows, *more])
