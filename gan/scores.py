"""A run's scores.jsonl: one line a score, from training or from a command, and the curves and choices made from them."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan.errors import UserError
from gan.files import write_atomically

FILE = "scores.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """What an evaluation during training gives."""

    record: Record  # for scores.jsonl: with "step", "source" and "series", which is equal where scores compare
    curves: dict[str, float]  # for the trackers, by name
    distance: float  # between generated and real images: the lower, the better


def read(folder: Path) -> list[Record]:
    """The scores of the run in ``folder``, in the order in which they were made. A last line that is not whole is left out.

    Raises UserError for a line that is not a score.
    """
    path = folder / FILE
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # a kill cut it off
        try:
            record = json.loads(line)
            record["step"], record["protocol"], record["source"], record["series"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: line {number} is not a score. Restore the file from a copy, or remove the line.") from None
        records.append(record)
    return records


def append(folder: Path, record: Record) -> None:
    """Adds a line, which is on the disk when this returns."""
    line = json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"
    with _held(folder), (folder / FILE).open("a+b") as file:
        file.seek(0)
        content = file.read()
        if not content.endswith(b"\n"):  # what a kill left of a line
            file.truncate(content.rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def forget_training_after(folder: Path, step: int) -> None:
    """Drops what training scored after ``step``: it will be scored again. What a command scored stays."""
    if not (folder / FILE).exists():
        return
    with _held(folder):
        kept = [r for r in read(folder) if r["source"] != "training" or r["step"] <= step]
        content = b"".join(json.dumps(r, sort_keys=True).encode() + b"\n" for r in kept)
        if content != (folder / FILE).read_bytes():
            write_atomically(folder / FILE, content)


def best_distance(folder: Path, series: str) -> float | None:
    """The lowest distance among the scores of ``series`` that training made; None where there is none."""
    own = [r for r in read(folder) if r["source"] == "training" and r["series"] == series]
    return min((distance_of(r) for r in own), default=None)


def distance_of(record: Record) -> float:
    """What decides which generator is the best: the distance over all its samples."""
    return float(record["scores"]["pooled"]["fid"])


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One writer at a time: a command may score a run that is being trained."""
    with (folder / ".scores.lock").open("ab") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
