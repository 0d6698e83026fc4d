"""How time and memory grow with the number of images scored, image size, channels and the size of a data set."""

import hashlib
import os
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.alternating import ROOT, Candidate, Case, Timing, compete
from benchmarks.measurements import Measurement, Suite, made_up, zipped
from benchmarks.steps import prepare
from eval.extractors import load_extractor
from eval.features import extract
from eval.measurement import Reference, measure
from gan.config import load_config
from gan.data.datasets import load_images
from gan.data.stream import BatchShard, BatchStream
from gan.runs.folder import resolve
from gan.training.gan_step import train_step
from gan.utils.settings import DataConfig


class _Noise:
    """Random images by index; nothing of them is kept."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.identity = {"noise": count}

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(start))


def score(count: int) -> Case:
    """``count`` images from pixels to numbers, with efficientnet-lite0, under ``paper``'s recipe for so many."""
    from benchmarks.scoring import paper_of

    extractor = load_extractor("efficientnet-lite0")
    real = extract(_Noise(100), extractor, use_cache=False, show_progress=False)

    def case() -> float:
        features = extract(_Noise(count), extractor, use_cache=False, show_progress=False)
        assert features is not None
        return float(measure(features, Reference(real), paper_of(count))["pooled"]["fid"])

    return case


def step(size: int, channels: int) -> Case:
    """A training step of MSNGAN at an image size and a width of both networks."""
    overrides = [
        f"data.image_size={size}", f"model.generator.channels={channels}", f"model.discriminator.channels={channels}",
        "training.precision=fp32", "training.batch_size=16", "evaluation.every=0",
    ]  # fmt: skip
    state, stream, context = prepare(load_config(ROOT / "configs" / "digits_msngan.yaml", overrides))
    done = 0

    def case() -> float:
        nonlocal done
        done += 1
        return float(train_step(state, stream, done, context)["d_loss"])

    return case


def start(path: str) -> Case:
    """What a run does before its first step: the archive opened, named by its content, decoded or found in the cache."""

    def case() -> dict[str, Any]:
        data = DataConfig(name="folder", path=path)
        images = load_images(data)
        pixels = images.to_memory(lambda items, _total, _what: items, data.workers)
        return {
            "images": len(pixels),
            "fingerprint": images.fingerprint,
            "sha256": hashlib.sha256(pixels.numpy().data).hexdigest(),
        }

    return case


def stream(path: str) -> Case:
    """20 batches of a folder that is not held in memory."""
    overrides = ["data.name=folder", f"data.path={path}", "data.memory_gb=0"]
    config = load_config(ROOT / "configs" / "cifar10_msngan.yaml", overrides)
    images = load_images(config.data)
    config = resolve(config, images.channels, torch.device("cpu"))
    share = BatchShard.of(config, rank=0, processes=1)
    batches = BatchStream(images, None, config=config, share=share, device=torch.device("cpu"))
    update = 0

    def case() -> int:
        nonlocal update
        for _ in range(20):
            batches.batch(update)
            update += 1
        return update

    return case


def lines(suite: Suite) -> list[Measurement]:
    """Part 7. A ratio near 1 says that twice the work takes twice the time."""
    found = []
    counts = [60, 120] if suite.quick else [1000, 2000, 4000, 8000]
    timings = compete(
        {f"{n:,} images": Candidate("benchmarks.growth:score", {"count": n}) for n in counts},
        rounds=1,
        warm_up=0,
    )
    for small, large in pairwise(counts):
        low, high = timings[f"{small:,} images"], timings[f"{large:,} images"]
        found.append(_growth("scoring", f"{large:,} images", high, large, f"{small:,}", low, small))
    sizes = (32, 64) if suite.quick else (32, 64, 128)
    for what, cases, size in (
        ("training step, image size", [{"size": s, "channels": 32} for s in sizes], lambda c: c["size"] ** 2),
        ("training step, channels", [{"size": 32, "channels": c} for c in sizes], lambda c: c["channels"] ** 2),
    ):
        key = "size" if "size" in what else "channels"
        timings = compete({str(c[key]): Candidate("benchmarks.growth:step", c) for c in cases}, rounds=suite.rounds(2, 5))
        for before, after in pairwise(cases):
            a, b = timings[str(after[key])], timings[str(before[key])]
            found.append(_growth(what, str(after[key]), a, size(after), str(before[key]), b, size(before)))
    return found + _data_sets(suite)


def _growth(what: str, large: str, high: Any, work: float, small: str, low: Any, less: float) -> Measurement:
    """How fast the larger one is for each unit of its work, against the smaller one."""
    ratio = (low.median / less) / (high.median / work)
    memory = f"{high.peak_mb:,.0f} MB against {low.peak_mb:,.0f}"
    return Measurement(f"{what}: speed for the work", large, small, ratio, (high.median, low.median), memory, "1 or above")


def _data_sets(suite: Suite) -> list[Measurement]:
    """Start-up from an archive, the first time and again; memory for folders of two sizes that are streamed."""
    large, archive, count = suite.folder(), suite.archive(), 50_000
    if suite.quick:
        large, count = suite.place / "large", 5000
        made_up(large, count)
        archive = zipped(large, suite.place / "large.zip")
    first: list[Timing] = []
    again: list[Timing] = []
    for attempt in range(suite.rounds(1, 3)):
        os.environ["MSNGAN_CACHE"] = str(suite.place / f"pixels-{attempt}")
        # One after the other: the second must find what the first has kept.
        for times in (first, again):
            timing = compete({"x": Candidate("benchmarks.growth:start", {"path": str(archive)})}, rounds=1, warm_up=0)["x"]
            times.append(timing)
    seconds = [float(np.median([t.median for t in times])) for times in (first, again)]
    assert first[0].value == again[0].value
    check = f"the same {first[0].value['images']:,} images"
    found = [
        Measurement("start-up from an archive", "again", "the first time", seconds[0] / seconds[1], (seconds[1], seconds[0]),
             check, "≤ 1 s, ≤ 10 s")
    ]  # fmt: skip
    small = suite.place / "small"
    made_up(small, count // 10)
    timings = compete(
        {str(folder): Candidate("benchmarks.growth:stream", {"path": str(folder)}) for folder in (large, small)},
        rounds=suite.rounds(1, 3),
    )
    a, b = timings[str(large)], timings[str(small)]
    memory = f"{a.peak_mb:,.0f} MB against {b.peak_mb:,.0f}"
    found.append(
        Measurement("20 batches of a streamed folder", "all files", f"{count // 10:,} files", b.median / a.median,
             (a.median, b.median), memory, "1 or above")
    )  # fmt: skip
    return found
