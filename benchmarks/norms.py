"""The paper's own claim: a discriminator's training step under BN, SN and MSN, and where its time goes."""

from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.alternating import Candidate, Case, compete
from benchmarks.measurements import Measurement, Suite
from benchmarks.plain import NaiveMeanSpectralNorm
from benchmarks.steps import discriminator_like
from gan.models.losses import discriminator_loss
from gan.models.norms import SpectralNorm, power_iterate
from gan.runs.folder import computes_in_bf16
from gan.training.gan_step import discriminator_logits
from study.models import BUILDERS
from study.tables import MODEL_NAMES

NAMES = {"batch": "BN", "spectral": "SN", "mean_spectral": "MSN", "naive": "MSN, word for word"}


def build(norm: str) -> nn.Module:
    """The paper's discriminator; ``naive`` is MSN as Eq. 7 reads, a pass over each output."""
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
    """A D update on real and fake images apart: power iteration, forward, backward, Adam."""
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
    """The largest relative difference between MSN's gradients and those of its definition, word for word. In float64: in
    float32 the last bit decides now and then on which side of LeakyReLU's kink a value falls."""
    torch.manual_seed(1)
    x, upstream = torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    gradients = []
    for norm in ("mean_spectral", "naive"):
        network = build(norm).double()
        (network(x) * upstream).sum().backward()
        gradients.append([m.layer.weight.grad for m in network.modules() if isinstance(m, SpectralNorm)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))


GROUPS = {
    "convolutions, forward": ("convolution",),
    "convolutions, backward": ("convolution_backward",),
    "batch norm": ("batch_norm",),
    "activations": ("leaky_relu",),
    "optimiser": ("adam",),
    "dense": ("addmm", "::mm", "linear"),
}


def shares(norm: str, precision: str, repeats: int = 5) -> dict[str, float]:
    """Milliseconds of a step by group of operations, measured by torch's profiler; the rest under its largest parts."""
    case = training_step(norm, precision)
    case()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            case()
    result = dict.fromkeys([*GROUPS, "means, sums, corrections and other passes"], 0.0)
    for event in found.key_averages():
        name = event.key
        if not name.startswith("aten::"):
            continue
        group = next((g for g, parts in GROUPS.items() if any(part in name for part in parts)), None)
        if "convolution_backward" in name:
            group = "convolutions, backward"
        result[group or "means, sums, corrections and other passes"] += event.self_cpu_time_total / 1000 / repeats
    return result


def bandwidth() -> float:
    """Bytes a second of a copy much larger than the caches, read and written."""
    import time

    source = torch.randn(64, 1024, 1024)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return 2 * source.numel() * 4 / sorted(times)[2]


def bound(norm: str, rate: float, width: int = 4, batch: int = 64) -> float:
    """Milliseconds that the passes over activations which ``norm`` adds to a convolution need at ``rate`` bytes a second,
    in a step with two batches: BN reads its input twice and writes it, reads it and its gradient twice and writes that;
    MSN averages its input; in the backward pass it reads and writes the gradient of its input, or, where that is
    larger, reads the gradient of its output twice and writes it once."""
    passes = 0.0
    for before, after, shrink in _SIZES:
        x, y = before, after
        if norm == "batch":
            passes += 8 * y
        elif norm == "mean_spectral":
            passes += x + (3 * y if shrink else (2 * x if before != 3 * 1024 else 0))
    return 2 * batch * passes * width / rate * 1000


def profiles() -> str:
    """A table: milliseconds of a D step by group of operations for each norm, and what bandwidth alone would ask."""
    rate = bandwidth()
    rows = [
        f"a copy moves {rate / 1e9:.1f} GB/s",
        "",
        "| | " + " | ".join(NAMES.values()) + " |",
        "|---" * (len(NAMES) + 1) + "|",
    ]
    found = {norm: shares(norm, "fp32") for norm in NAMES}
    for group in next(iter(found.values())):
        rows.append(f"| {group} | " + " | ".join(f"{found[norm][group]:.1f}" for norm in NAMES) + " |")
    rows.append("| all | " + " | ".join(f"{sum(found[norm].values()):.1f}" for norm in NAMES) + " |")
    rows.append("| passes of the norm at that bandwidth | " + " | ".join(f"{bound(norm, rate):.1f}" for norm in NAMES) + " |")
    return "\n".join(rows)


# Values of an image before and after each convolution, and whether it halves the side.
_SIZES = [
    (3 * 1024, 64 * 1024, False), (64 * 1024, 64 * 256, True), (64 * 256, 128 * 256, False), (128 * 256, 128 * 64, True),
    (128 * 64, 256 * 64, False), (256 * 64, 256 * 16, True), (256 * 16, 512 * 16, False),
]  # fmt: skip


def lines(suite: Suite) -> list[Measurement]:
    """Part 3: BN, SN, MSN and MSN word for word."""
    difference = agreement()
    assert difference <= 1e-9, difference
    found = []
    precisions = {"float32": "fp32"} | ({"bf16": "bf16"} if computes_in_bf16(torch.device("cpu")) else {})
    for name, precision in precisions.items():
        contestants = {
            text: Candidate("benchmarks.norms:training_step", {"norm": norm, "precision": precision})
            for norm, text in NAMES.items()
        }
        timings = compete(contestants, rounds=suite.rounds(4, 40))
        for a, b, goal in (("SN", "BN", ""), ("MSN", "BN", "≥ 1"), ("MSN", "SN", "≥ 0.97"), ("MSN", NAMES["naive"], "")):
            check = "the paper: 1.27" if (a, b) == ("SN", "BN") else "the paper: 1.16" if b == "BN" else ""
            if b == NAMES["naive"]:
                check = f"gradients equal to {difference:.0e}"
            found.append(Measurement.of(f"D's training step, {name}", a, timings[a], b, timings[b], check=check, goal=goal))
    return found + classifiers(suite)


def classifiers(suite: Suite) -> list[Measurement]:
    """The same claim for the paper's classifiers."""
    found = []
    for model in BUILDERS:
        contestants = {
            NAMES[norm]: Candidate("study.speed:training_step", {"model": model, "norm": norm, "batch": suite.batch})
            for norm in ("batch", "spectral", "mean_spectral")
        }
        units = 1 if model == "densenet_bc" else suite.rounds(5, 10)
        timings = compete(contestants, rounds=suite.rounds(1, 15), units=units)
        for a, paper in (("SN", "1.27"), ("MSN", "1.16")):
            what = suite.sized(f"training step of {MODEL_NAMES[model]}, float32")
            found.append(Measurement.of(what, a, timings[a], "BN", timings["BN"], check=f"the paper: {paper}"))
    return found
