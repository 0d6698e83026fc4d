"""Measure how time and memory grow with the number of scored images, image size, channels and size of the data set."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.alternating import ROOT, Candidate, Case, Timing, compete, numbered
from benchmarks.measurements import Measurement, Suite, memory, write_random_images, zipped
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


class _RandomImages:
    """Random images by index, made when they are read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.identity = {"noise": count}

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(start))


def score(count: int) -> Case:
    """Score ``count`` images from pixels to numbers, with efficientnet-lite0 under the protocol ``paper``."""
    from benchmarks.scoring import paper_of

    extractor = load_extractor("efficientnet-lite0")
    real = extract(_RandomImages(100), extractor, use_cache=False, show_progress=False)

    def case() -> float:
        features = extract(_RandomImages(count), extractor, use_cache=False, show_progress=False)
        assert features is not None
        return float(measure(features, Reference(real), paper_of(count))["pooled"]["fid"])

    return case


def step(size: int, channels: int) -> Case:
    """Take a training step of MSNGAN with images of ``size`` and ``channels`` in both networks."""
    overrides = [
        f"data.image_size={size}", f"model.generator.channels={channels}", f"model.discriminator.channels={channels}",
        "training.precision=fp32", "training.batch_size=16", "evaluation.every=0",
    ]  # fmt: skip
    state, stream, context = prepare(load_config(ROOT / "configs" / "digits_msngan.yaml", overrides))
    return numbered(lambda number: float(train_step(state, stream, number, context)["d_loss"]))


def start(path: str) -> Case:
    """Do what precedes a run's first step: open the archive, compute its fingerprint, decode it or read the cache."""

    def case() -> dict[str, Any]:
        data = DataConfig(name="folder", path=path)
        images = load_images(data)
        pixels = images.decode_all(lambda items, _total, _what: items, data.workers)
        sha256 = hashlib.sha256(pixels.numpy().data).hexdigest()
        return {"images": len(pixels), "fingerprint": images.fingerprint, "sha256": sha256}

    return case


def stream(path: str) -> Case:
    """Read 20 batches of a folder that is not kept in memory."""
    overrides = ["data.name=folder", f"data.path={path}", "data.memory_gb=0"]
    config = load_config(ROOT / "configs" / "cifar10_msngan.yaml", overrides)
    images = load_images(config.data)
    config = resolve(config, images.channels, torch.device("cpu"))
    shard = BatchShard.of(config, rank=0, processes=1)
    batches = BatchStream(images, None, config=config, shard=shard, device=torch.device("cpu"))

    def case(number: int) -> None:
        for update in range(20 * number, 20 * number + 20):
            batches.batch(update)

    return numbered(case)


def lines(suite: Suite) -> list[Measurement]:
    """Return the speed for each unit of work: a speed-up near 1 says that twice the work takes twice the time."""
    counts = [60, 120] if suite.quick else [1000, 2000, 4000, 8000]
    sizes = (32, 64) if suite.quick else (32, 64, 128)
    timings = compete({f"{n:,}": Candidate("benchmarks.growth:score", {"count": n}) for n in counts}, rounds=1, warm_up=0)
    found = _growth("scoring, images", timings, counts, lambda count: count)
    for what, vary in (
        ("image size", lambda s: {"size": s, "channels": 32}),
        ("channels", lambda c: {"size": 32, "channels": c}),
    ):
        candidates = {f"{value:,}": Candidate("benchmarks.growth:step", vary(value)) for value in sizes}
        timings = compete(candidates, rounds=suite.rounds(2, 5))
        found += _growth(f"training step, {what}", timings, sizes, lambda value: value**2)
    return [*found, _start_up(suite), _streaming(suite)]


def _growth(what: str, timings: Mapping[str, Timing], sizes: Sequence[int], work: Callable[[int], int]) -> list[Measurement]:
    """Return the speed for each unit of work of each size against the size before it."""
    found = []
    for less, more in pairwise(sizes):
        small, large = timings[f"{less:,}"], timings[f"{more:,}"]
        speed_up = (small.median / work(less)) / (large.median / work(more))
        medians = large.median, small.median
        check = memory(large, small)
        found.append(Measurement(f"{what}: speed for the work", f"{more:,}", f"{less:,}", speed_up, medians, check, "1 or above"))
    return found


def _large_folder(suite: Suite) -> tuple[Path, int]:
    """Return a folder of images and their number."""
    if not suite.quick:
        return suite.folder(), 50_000
    folder = suite.place / "large"
    if not folder.exists():
        write_random_images(folder, 5000)
    return folder, 5000


def _start_up(suite: Suite) -> Measurement:
    """Compare the second start-up from an archive, which reads the pixel cache, with the first."""
    archive = zipped(_large_folder(suite)[0], suite.place / "large.zip") if suite.quick else suite.archive()
    timings = {"the first time": Timing(), "again": Timing()}
    for attempt in range(suite.rounds(1, 3)):
        os.environ["MSNGAN_CACHE"] = str(suite.place / f"pixels-{attempt}")
        for timing in timings.values():  # in this order: the second finds the cache that the first has written
            candidate = Candidate("benchmarks.growth:start", {"path": str(archive)})
            done = compete({"start": candidate}, rounds=1, warm_up=0)["start"]
            timing.seconds += done.seconds
            timing.value = done.value
    first, again = timings.values()
    assert first.value == again.value
    check = f"the same {first.value['images']:,} images"
    return Measurement.of("start-up from an archive", timings, "again", "the first time", check, "≤ 1 s, ≤ 10 s")


def _streaming(suite: Suite) -> Measurement:
    """Compare streaming from a folder of all files with streaming from one of a tenth as many."""
    large, count = _large_folder(suite)
    small, fewer = suite.place / "small", f"{count // 10:,} files"
    write_random_images(small, count // 10)
    folders = {"all files": large, fewer: small}
    candidates = {name: Candidate("benchmarks.growth:stream", {"path": str(folder)}) for name, folder in folders.items()}
    timings = compete(candidates, rounds=suite.rounds(1, 3))
    check = memory(timings["all files"], timings[fewer])
    return Measurement.of("20 batches of a streamed folder", timings, "all files", fewer, check, "1 or above")
