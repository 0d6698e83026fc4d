"""Measure the paper's claim that SN and MSN train faster than BN: steps of its classifiers, the norms alternating."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gan.utils.files import make_folder, write_atomically
from gan.utils.progress import follow
from study.models import ModelName, build_classifier, update_classifier
from study.tables import MODEL_NAMES, NORM_NAMES, NORMS, csv_text

PUBLISHED = {"spectral": 27.0, "mean_spectral": 16.0}  # percent faster than BN
_SHAPES: dict[ModelName, tuple[int, int]] = {"cnn3": (1, 28), "vgg7": (3, 32), "densenet_bc": (3, 32)}


def training_step(model: ModelName, norm: str, precision: str = "fp32", batch: int = 64) -> Callable[[], float]:
    """Return a function that takes one training step on ``batch`` random images of the paper's size and returns the loss."""
    channels, size = _SHAPES[model]
    network = build_classifier(model, norm, channels=channels, size=size, classes=10, seed=0)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    draw = torch.Generator().manual_seed(0)
    images: Tensor = torch.randn(batch, channels, size, size, generator=draw).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=draw)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step() -> float:
        return float(update_classifier(network, optimizer, images, labels, autocast)["loss"])

    return step


def measure(models: Sequence[ModelName], rounds: int) -> list[tuple[ModelName, dict[str, float]]]:
    """Return each model's median seconds of a step by norm. The norms alternate; the first step of each is not counted."""
    found = []
    for model in models:
        steps = {norm: training_step(model, norm) for norm in NORMS}
        seconds: dict[str, list[float]] = {norm: [] for norm in NORMS}
        for number in follow(iter(range(rounds + 1)), rounds + 1, f"{MODEL_NAMES[model]}, round"):
            for norm, step in steps.items():
                began = time.perf_counter()
                step()
                if number:
                    seconds[norm].append(time.perf_counter() - began)
        found.append((model, {norm: statistics.median(times) for norm, times in seconds.items()}))
    return found


def write_speed(out: Path, rounds: int) -> str:
    """Measure, write speed.md and speed.csv into ``out`` and return the table as Markdown."""
    rows: list[tuple[str, str, float, float | None, float | None, float | None]] = []
    for model, medians in measure(list(_SHAPES), rounds):
        for norm, median in medians.items():
            faster = 100 * (medians["batch"] / median - 1) if norm != "batch" else None
            published = PUBLISHED.get(norm)
            difference = faster - published if faster is not None and published is not None else None
            rows.append((MODEL_NAMES[model], NORM_NAMES[norm], 1000 * median, published, faster, difference))
    lines = [
        "| model | norm | median step | faster than BN: published | measured | difference |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, norm_name, milliseconds, *percents in rows:
        shown = ["" if p is None else f"{p:.0f}%" if p == percents[0] else f"{p:+.1f}%" for p in percents]
        lines.append(f"| {name} | {norm_name} | {milliseconds:.1f} ms | {' | '.join(shown)} |")
    lines += [
        "",
        f"Training steps of 64 made-up images in float32 on {torch.get_num_threads()} CPU threads, the norms in turn, medians of"
        f" {rounds} rounds. The paper gives one number for all its models and names neither hardware nor precision.",
    ]
    text = "\n".join(lines)
    make_folder(out)
    write_atomically(out / "speed.md", text.encode() + b"\n")
    names = ["model", "norm", "median_ms", "published_percent", "measured_percent", "difference"]
    cells = [[n, m, f"{ms:.3f}", *("" if p is None else f"{p:.2f}" for p in percents)] for n, m, ms, *percents in rows]
    write_atomically(out / "speed.csv", csv_text(names, cells).encode())
    return text
