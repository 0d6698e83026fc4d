"""Measure how time and memory grow with the number of scored images, image size, channels and size of the data set."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from typing import Any

import torch

from benchmarks.alternating import ROOT, Candidate, Case, Timing, compete, numbered
from benchmarks.measurements import Row, Suite, memory, speed_up, write_random_images
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
    assert real is not None

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
    """Read 20 batches of a folder that is not kept in memory, with worker processes of their own."""
    overrides = ["data.name=folder", f"data.path={path}", "data.memory_gb=0"]
    config = load_config(ROOT / "configs" / "cifar10_msngan.yaml", overrides)
    images = load_images(config.data)
    config = resolve(config, images.channels, torch.device("cpu"))
    shard = BatchShard.of(config, rank=0, processes=1)

    def case(number: int) -> None:
        # Workers that are left to the end of this process would delay it by the time that a stopped run is given to save.
        with closing(BatchStream(images, None, config=config, shard=shard, device=torch.device("cpu"))) as batches:
            for update in range(20 * number, 20 * number + 20):
                batches.batch(update)

    return numbered(case)


def lines(suite: Suite) -> list[Row]:
    """Return the speed for each unit of work: a speed-up near 1 says that twice the work takes twice the time."""
    sizes = [32, 64] if suite.quick else [32, 64, 128]
    counts = [60, 120] if suite.quick else [1000, 2000, 4000, 8000]
    images = {count: Candidate("benchmarks.growth:score", {"count": count}) for count in counts}
    found = _growth("scoring, images", images, work=1, rounds=1, warm_up=0)
    for what, settings in (
        ("image size", [{"size": size, "channels": 32} for size in sizes]),
        ("channels", [{"size": 32, "channels": size} for size in sizes]),
    ):
        candidates = {size: Candidate("benchmarks.growth:step", own) for size, own in zip(sizes, settings, strict=True)}
        found += _growth(f"training step, {what}", candidates, work=2, rounds=suite.rounds(2, 5), warm_up=1)
    return [*found, _start_up(suite), _streaming(suite)]


def _growth(what: str, candidates: Mapping[int, Candidate], *, work: int, rounds: int, warm_up: int) -> list[Row]:
    """Return the speed for each unit of work of each size, whose power ``work`` is the work, against the size before it."""
    timings = compete({f"{size:,}": candidate for size, candidate in candidates.items()}, rounds=rounds, warm_up=warm_up)
    found = []
    for less, more in pairwise(candidates):
        large, small = f"{more:,}", f"{less:,}"
        check = memory(timings[large], timings[small])
        ratio = (more / less) ** work
        found.append(speed_up(f"{what}: speed for the work", timings, large, small, check, "1 or above", ratio))
    return found


def _start_up(suite: Suite) -> Row:
    """Compare the second start-up from an archive, which reads the pixel cache, with the first."""
    candidate = Candidate("benchmarks.growth:start", {"path": str(suite.archive())})
    timings = {"the first time": Timing(), "again": Timing()}
    for attempt in range(suite.rounds(1, 3)):
        os.environ["MSNGAN_CACHE"] = str(suite.place / f"pixels-{attempt}")
        for timing in timings.values():  # in this order: the second finds the cache that the first has written
            done = compete({"start": candidate}, rounds=1, warm_up=0)["start"]
            timing.seconds += done.seconds
            timing.value = done.value
    first, again = timings.values()
    same = suite.check("pixels and fingerprint equal", float(first.value != again.value), 0)
    check = f"{first.value['images']:,} images; {same}"
    return speed_up("start-up from an archive", timings, "again", "the first time", check, "≤ 1 s, ≤ 10 s")


def _streaming(suite: Suite) -> Row:
    """Compare streaming from a folder of all files with streaming from one of a tenth as many."""
    count = suite.rounds(500, 5000)
    small = suite.place / "small"
    write_random_images(small, count)
    fewer = f"{count:,} files"
    folders = {"all files": suite.folder(), fewer: small}
    candidates = {name: Candidate("benchmarks.growth:stream", {"path": str(folder)}) for name, folder in folders.items()}
    timings = compete(candidates, rounds=suite.rounds(1, 3))
    check = memory(timings["all files"], timings[fewer])
    return speed_up("20 batches of a streamed folder", timings, "all files", fewer, check, "1 or above")
