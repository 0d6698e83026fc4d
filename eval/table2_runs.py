"""One run's part of Table II: its scores, its distance along training and its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.comparison_keys import comparison_key
from gan.config import GanConfig
from gan.data.decoding import MAX_FILE_BYTES
from gan.runs.folder import recorded_images
from gan.runs.metrics import METRICS, damaged_line
from gan.utils.errors import UserError
from gan.utils.safe_reading import is_number, read_file, read_records

Record = dict[str, Any]
_GRIDS = 4  # pictures along a training


@dataclass(frozen=True)
class RunScores:
    """One training."""

    name: str
    seed: int
    images: str  # fingerprint of those that it was trained on; "" where it is not known
    records: dict[str, Record]  # by protocol: that of the most trained generator
    curve: dict[int, float]  # distance by step, ascending
    grids: dict[int, bytes]  # PNG by step, ascending
    seconds: list[tuple[int, float]]  # of training up to a step since the line before, as the run recorded them

    def minutes(self, step: int) -> float | None:
        """Return the minutes of training up to ``step``, without stops and scores; None where the run has no record."""
        return sum(seconds for at, seconds in self.seconds if at <= step) / 60 if self.seconds else None


def read_run_scores(
    folder: Path, config: GanConfig, chosen: dict[str, Record], records: Sequence[Record], series: str
) -> RunScores:
    """Return the run in ``folder`` with the ``chosen`` records; its curve has those of ``records`` that are of ``series``.

    Raises UserError for a picture that cannot be read, or a damaged metrics.jsonl.
    """
    points = {r["step"]: r["scores"]["fid"]["mean"] for r in records if comparison_key(r["provenance"]) == series}
    last = max((record["step"] for record in chosen.values()), default=0)
    pictures = {int(path.stem[5:]): path for path in sorted((folder / "samples").glob("step-*.png")) if path.stem[5:].isdecimal()}
    steps = [step for step in pictures if step <= last]
    shown = sorted({round(i * (len(steps) - 1) / (_GRIDS - 1)) for i in range(_GRIDS)}) if steps else []
    return RunScores(
        name=folder.name,
        seed=config.seed,
        images=recorded_images(folder),
        records=chosen,
        curve=dict(sorted(points.items())),
        grids={steps[i]: _read_picture(pictures[steps[i]]) for i in shown},
        seconds=_read_seconds(folder / METRICS),
    )


def _read_picture(path: Path) -> bytes:
    try:
        return read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _read_seconds(path: Path) -> list[tuple[int, float]]:
    try:
        lines = [line for line in read_records(path) if "seconds" in line]
    except (OSError, ValueError):
        raise damaged_line(path) from None
    if not all(is_number(line["seconds"]) for line in lines):
        raise damaged_line(path)
    return [(line["step"], float(line["seconds"])) for line in lines]
