"""The measurements that the benchmarks print, and the images that they share."""

import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.alternating import Timing

HEAD = ["what", "A", "B", "speed-up of A", "goal", "median A / B", "check"]


@dataclass(frozen=True)
class Row:
    """One measurement: the speed-up of the program ``fast`` over ``slow``, and the check that both did the same work."""

    what: str
    fast: str
    slow: str
    ratio: float
    goal: str
    medians: str
    check: str

    def cells(self) -> list[str]:
        """Return the cells under HEAD."""
        return [self.what, self.fast, self.slow, f"{self.ratio:.2f}", self.goal, self.medians, self.check]


def speed_up(what: str, timings: Mapping[str, Timing], fast: str, slow: str, check: str, goal: str = "", work: float = 1) -> Row:
    """Return the speed-up of ``fast`` over ``slow`` and both medians, with the ``check`` that both did the same work.

    A unit of ``fast`` is ``work`` times as much work as one of ``slow``.
    """
    a, b = timings[fast].median, timings[slow].median
    return Row(what, fast, slow, work * b / a, goal, f"{_time(a)} / {_time(b)}", check)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def memory(a: Timing, b: Timing) -> str:
    """Return the peak memory of both as text."""
    return f"{a.peak_mb:,.0f} MB against {b.peak_mb:,.0f}"


@dataclass
class Suite:
    """The options and images that all parts of a run share."""

    quick: bool
    data: Path | None = None  # zip of images in class folders, such as CIFAR-10; None: random images
    scored: int | None = None  # images of each kind for the scoring programs; None: 20 in a quick run, else 500
    temporary: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    failed: list[str] = field(default_factory=list)  # checks, in words

    def check(self, what: str, difference: float, bound: float) -> str:
        """Return in words how far two programs agree on ``what``. A difference above ``bound`` is noted in ``failed``."""
        if difference <= bound:
            return f"{what} to {difference:.0e}"
        self.failed.append(f"{what}: a difference of {difference:.1e}, where at most {bound:.0e} is expected")
        return f"FAILED, {self.failed[-1]}"

    def rounds(self, quick: int, full: int) -> int:
        return quick if self.quick else full

    @property
    def batch(self) -> int:
        """The batch of a training step of the paper's networks: 64, or 16 in a quick run."""
        return self.rounds(16, 64)

    def sized(self, what: str) -> str:
        """Return ``what`` with the batch, unless that is the paper's."""
        return f"{what}, batch {self.batch}" if self.quick else what

    @cached_property
    def place(self) -> Path:
        return Path(self.temporary.name)

    def archive(self) -> Path:
        """Return the images of ``folder`` in a zip without compression."""
        path = self.data or self.place / "images.zip"
        if not path.exists():
            with zipfile.ZipFile(path, "w") as archive:
                for file in sorted(self.folder().rglob("*.jpg")):
                    archive.write(file, file.relative_to(self.folder()))
        return path

    def folder(self) -> Path:
        """Return a folder of 32x32 images as files in class folders."""
        folder = self.place / "images"
        if not folder.exists():
            if self.data is not None:
                with zipfile.ZipFile(self.data) as archive:
                    archive.extractall(folder)  # the developer's own zip
            else:
                write_random_images(folder, 5000 if self.quick else 50_000)
        return folder


def write_random_images(folder: Path, count: int) -> None:
    """Write smooth random images as JPEG files in ten class folders, each of about the size of a CIFAR-10 image."""
    draw = np.random.RandomState(0)
    for index in range(count):
        coarse = Image.fromarray(draw.randint(0, 256, (8, 8, 3), dtype=np.uint8))
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{index:06d}.jpg", quality=95)
