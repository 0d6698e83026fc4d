"""Measure the paper's claim that SN and MSN train faster than BN: steps of its classifiers, the norms alternating."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gan.utils.files import make_folder, write_atomically
from gan.utils.progress import follow
from gan.utils.tables import csv_text, markdown_table
from study.config import MODEL_NAMES, NORM_NAMES, NORMS, ModelName
from study.models import build_classifier, update_classifier

PUBLISHED = {"spectral": 27.0, "mean_spectral": 16.0}  # percent faster than BN
BATCH = 64
_SHAPES: dict[ModelName, tuple[int, int]] = {"cnn3": (1, 28), "vgg7": (3, 32), "densenet_bc": (3, 32)}


def training_step(model: ModelName, norm: str) -> Callable[[], object]:
    """Return a function that takes one training step on BATCH random images of the paper's size."""
    channels, size = _SHAPES[model]
    network = build_classifier(model, norm, channels=channels, size=size, classes=10, seed=0)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, channels, size, size, generator=draw).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,), generator=draw)
    float32 = torch.autocast("cpu", enabled=False)
    return lambda: update_classifier(network, optimizer, images, labels, float32)


def measure(model: ModelName, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step by norm. The norms alternate; the first step of each is not counted."""
    steps = {norm: training_step(model, norm) for norm in NORMS}
    seconds: dict[str, list[float]] = {norm: [] for norm in NORMS}
    for _ in follow(iter(range(rounds + 1)), rounds + 1, f"{MODEL_NAMES[model]}, round"):
        for norm, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[norm].append(time.perf_counter() - began)
    return {norm: statistics.median(times[1:]) for norm, times in seconds.items()}


def write_speed(out: Path, rounds: int) -> str:
    """Measure, write speed.md and speed.csv into ``out`` and return the table as Markdown."""
    lines, cells = [], []
    for model in _SHAPES:
        medians = measure(model, rounds)
        for norm, median in medians.items():
            shown, full = ["", "", ""], ["", "", ""]
            if norm in PUBLISHED:
                published, faster = PUBLISHED[norm], 100 * (medians["batch"] / median - 1)
                shown = [f"{published:.0f}%", f"{faster:+.1f}%", f"{faster - published:+.1f}%"]
                full = [f"{published:.2f}", f"{faster:.2f}", f"{faster - published:.2f}"]
            lines.append([MODEL_NAMES[model], NORM_NAMES[norm], f"{1000 * median:.1f} ms", *shown])
            cells.append([MODEL_NAMES[model], NORM_NAMES[norm], f"{1000 * median:.3f}", *full])
    head = ["model", "norm", "median step", "faster than BN: published", "measured", "difference"]
    text = (
        f"{markdown_table(head, lines)}\n\n"
        f"Training steps of {BATCH} made-up images in float32 on {torch.get_num_threads()} CPU threads, the norms in turn,"
        f" medians of {rounds} rounds. The paper gives one number for all its models and names neither hardware nor precision."
    )
    make_folder(out)
    write_atomically(out / "speed.md", text.encode() + b"\n")
    names = ["model", "norm", "median_ms", "published_percent", "measured_percent", "difference"]
    write_atomically(out / "speed.csv", csv_text(names, cells).encode())
    return text
