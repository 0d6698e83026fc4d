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

HEAD = "| what | A | B | speed-up of A | goal | median A / B | check |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Measurement:
    """The speed-up of ``fast`` over ``slow``, both medians, and the check that both did the same work."""

    what: str
    fast: str
    slow: str
    speed_up: float
    medians: tuple[float, float]  # seconds of a unit, fast and slow
    check: str
    goal: str = ""

    @classmethod
    def of(cls, what: str, timings: Mapping[str, Timing], fast: str, slow: str, check: str, goal: str = "") -> "Measurement":
        a, b = timings[fast].median, timings[slow].median
        return cls(what, fast, slow, b / a, (a, b), check, goal)

    def text(self) -> str:
        goal = f"  [goal {self.goal}]" if self.goal else ""
        a, b = map(_time, self.medians)
        return f"{self.what}: {self.speed_up:.2f}x{goal}  {self.fast} {a} against {self.slow} {b}; {self.check}"

    def row(self) -> str:
        times = " / ".join(map(_time, self.medians))
        return f"| {self.what} | {self.fast} | {self.slow} | {self.speed_up:.2f} | {self.goal} | {times} | {self.check} |"


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
        """Return the images of ``folder`` in a zip."""
        return self.data or zipped(self.folder(), self.place / "images.zip")

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


def zipped(folder: Path, path: Path) -> Path:
    """Write the files of ``folder`` into a zip without compression. Return its path."""
    if not path.exists():
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
    return path


def write_random_images(folder: Path, count: int) -> None:
    """Write smooth random images as JPEG files in ten class folders, each of about the size of a CIFAR-10 image."""
    draw = np.random.RandomState(0)
    for index in range(count):
        coarse = Image.fromarray(draw.randint(0, 256, (8, 8, 3), dtype=np.uint8))
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{index:06d}.jpg", quality=95)
