"""What the benchmarks print: a ratio of medians, both medians, and the check that both did the same work."""

import tempfile
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.alternating import Timing


@dataclass(frozen=True)
class Measurement:
    """One measurement: how many times as fast ``fast`` is as ``slow``."""

    what: str
    fast: str
    slow: str
    ratio: float
    medians: tuple[float, float]  # seconds of a unit, fast and slow
    check: str
    goal: str = ""  # of the issue; empty: none

    @classmethod
    def of(cls, what: str, fast: str, a: Timing, slow: str, b: Timing, *, check: str, goal: str = "") -> "Measurement":
        return cls(what, fast, slow, b.median / a.median, (a.median, b.median), check, goal)

    def text(self) -> str:
        goal = f"  [goal {self.goal}]" if self.goal else ""
        return (
            f"{self.what}: {self.ratio:.2f}x{goal}  {self.fast} {_time(self.medians[0])} against {self.slow}"
            f" {_time(self.medians[1])}; {self.check}"
        )

    def row(self) -> str:
        times = " / ".join(_time(median) for median in self.medians)
        return f"| {self.what} | {self.fast} | {self.slow} | {self.ratio:.2f} | {self.goal} | {times} | {self.check} |"


HEAD = "| what | A | B | A is so many times as fast | goal | median A / B | check |\n|---|---|---|---|---|---|---|"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


@dataclass
class Suite:
    """What all benchmarks of one run share."""

    quick: bool
    data: Path | None = None  # a zip of images in class folders, such as CIFAR-10; None: made-up images
    scored: int | None = None  # images of each kind for the scoring programs; None: as many as quick or full means
    temporary: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def rounds(self, quick: int, full: int) -> int:
        return quick if self.quick else full

    @property
    def batch(self) -> int:
        """Images in a training step of the paper's networks: its 64, where there is time."""
        return self.rounds(16, 64)

    def sized(self, what: str) -> str:
        """``what`` is measured, with the batch where it is not the paper's."""
        return f"{what}, batch {self.batch}" if self.quick else what

    @cached_property
    def place(self) -> Path:
        return Path(self.temporary.name)

    def archive(self) -> Path:
        """The same images in a zip."""
        return self.data or zipped(self.folder(), self.place / "images.zip")

    def folder(self) -> Path:
        """32x32 images as files in class folders."""
        folder = self.place / "images"
        if not folder.exists():
            if self.data is not None:
                with zipfile.ZipFile(self.data) as archive:
                    archive.extractall(folder)  # a benchmark's own data: no stranger's zip
            else:
                made_up(folder, 5000 if self.quick else 50_000)
        return folder


def zipped(folder: Path, path: Path) -> Path:
    """The files of ``folder`` in a zip, stored as they are."""
    if not path.exists():
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
    return path


def made_up(folder: Path, count: int) -> None:
    """Smooth random images as JPEG files in ten class folders, of about CIFAR-10's size each."""
    draw = np.random.RandomState(0)
    for index in range(count):
        coarse = Image.fromarray(draw.randint(0, 256, (8, 8, 3), dtype=np.uint8))
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{index:06d}.jpg", quality=95)
