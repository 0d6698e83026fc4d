"""Measure the paper's claim of speed: a discriminator's training step under BN, SN and MSN, and where its time goes."""

import time
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.alternating import Candidate, Case, compete
from benchmarks.measurements import Row, Suite, speed_up
from benchmarks.plain import NaiveMeanSpectralNorm
from benchmarks.steps import discriminator_like, precisions
from gan.models.losses import discriminator_loss
from gan.models.norms import SpectralNorm, power_iterate
from gan.training.gan_step import discriminator_logits
from gan.utils.tables import markdown_table

NAMES = {"batch": "BN", "spectral": "SN", "mean_spectral": "MSN", "naive": "MSN, word for word"}


def build(norm: str) -> nn.Module:
    """Return the paper's discriminator. ``naive`` is MSN as Eq. 7 is written, with a pass over each output."""
    torch.manual_seed(0)
    if norm != "naive":
        return discriminator_like(norm)
    network: Any = discriminator_like("spectral")
    layers = []
    for layer in network.layers:
        layers.append(layer)
        if isinstance(layer, SpectralNorm) and isinstance(layer.layer, nn.Conv2d):
            layers.append(NaiveMeanSpectralNorm(layer.layer.out_channels))
    network.layers = nn.Sequential(*layers)
    return nn.Module.to(network, memory_format=torch.channels_last)


def training_step(norm: str, precision: str, batch: int = 64) -> Case:
    """Take a D update on separate batches of real and fake images: power iteration, forward, backward, Adam."""
    network = build(norm)
    optimizer = torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999), fused=True)
    real, fake = (torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last) for _ in range(2))

    def case() -> float:
        power_iterate(network)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            scores = discriminator_logits(network, real, fake, joint=False)
        loss = discriminator_loss("sngan", *(s.float() for s in scores))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return case


def agreement() -> float:
    """Return the largest relative difference between the gradients of MSN and of its definition, both in float64.

    In float32 the last bit sometimes decides on which side of LeakyReLU's kink a value falls.
    """
    torch.manual_seed(1)
    x, upstream = torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    gradients = []
    for norm in ("mean_spectral", "naive"):
        network = build(norm).double()
        (network(x) * upstream).sum().backward()
        gradients.append([m.layer.weight.grad for m in network.modules() if isinstance(m, SpectralNorm)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))


GROUPS = {  # the first group with a part of an operation's name has that operation
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("convolution",),
    "batch norm": ("batch_norm",),
    "activations": ("leaky_relu",),
    "optimiser": ("adam",),
    "dense": ("addmm", "::mm", "linear"),
}
OTHER = "means, sums, corrections and other passes"


def milliseconds(norm: str, repeats: int = 5) -> dict[str, float]:
    """Return the milliseconds of a float32 step by group of operations, from torch's profiler."""
    case = training_step(norm, "fp32")
    case()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            case()
    found = dict.fromkeys([*GROUPS, OTHER], 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
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


def profiles() -> str:
    """Return a table of the milliseconds of a D step by group of operations and norm, and of the bound by bandwidth."""
    rate = bandwidth()
    found = {norm: milliseconds(norm) for norm in NAMES}
    rows = {group: [found[norm][group] for norm in NAMES] for group in [*GROUPS, OTHER]}
    rows["all"] = [sum(found[norm].values()) for norm in NAMES]
    rows["passes of the norm at that bandwidth"] = [bound(norm, rate) for norm in NAMES]
    table = markdown_table(["", *NAMES.values()], [[name, *(f"{ms:.1f}" for ms in row)] for name, row in rows.items()])
    return f"a copy moves {rate / 1e9:.1f} GB/s\n\n{table}"


def lines(suite: Suite) -> list[Row]:
    """Return the speed-ups of SN and MSN over BN, and of MSN over SN and over MSN word for word."""
    equal = suite.check("gradients in float64 equal", agreement(), 1e-9)
    pairs = [
        ("SN", "BN", "", "the paper: 1.27"), ("MSN", "BN", "≥ 1", "the paper: 1.16"), ("MSN", "SN", "≥ 0.97", ""),
        ("MSN", NAMES["naive"], "", equal),
    ]  # fmt: skip
    found = []
    for name, precision in precisions().items():
        candidates = {
            text: Candidate("benchmarks.norms:training_step", {"norm": norm, "precision": precision})
            for norm, text in NAMES.items()
        }
        timings = compete(candidates, rounds=suite.rounds(4, 40))
        found += [speed_up(f"D's training step, {name}", timings, a, b, check, goal) for a, b, goal, check in pairs]
    return found
