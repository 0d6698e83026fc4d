"""What the page shows of each run, from the run's folder alone, while it trains or after."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan.runs import scores
from gan.runs.folder import read_starts
from gan.runs.metrics import METRICS, PROBES
from gan.runs.status import WARM_UP, RunStatus, Settings, health_limit, is_classifier, read_run_settings, read_status
from gan.utils.errors import UserError
from gan.utils.safe_reading import is_number, is_whole, read_records

Record = dict[str, Any]
NEIGHBOURS = "neighbours.png"  # in a run's folder, where ``sample --neighbours`` was told to write it there
_ENVIRONMENT = (
    "time", "step", "python", "versions", "git_commit", "device", "processor", "threads", "processes", "precision", "data",
    "command",
)  # fmt: skip


@dataclass(frozen=True)
class Event:
    """A health warning."""

    step: int
    text: str


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    label: str  # the folder's name, or its path where another run has that name
    status: RunStatus
    settings: Settings  # by dotted key
    environment: dict[str, str]  # of the newest start; empty before the first
    metrics: list[Record]  # lines of metrics.jsonl
    probes: list[Record]  # lines of probes.jsonl, a classifier's layers
    scores: list[Record]  # lines of scores.jsonl that have a step
    events: list[Event]
    grids: dict[int, Path]  # pictures of samples by step, ascending
    neighbours: Path | None


def read_run_records(folders: Sequence[Path]) -> list[RunRecord]:
    """Return the runs in ``folders``, each once.

    Raises UserError for a folder that is no run, a damaged file, GANs beside classifiers, and runs that have written nothing.
    """
    different = list({folder.resolve(): folder for folder in folders}.values())
    names = [folder.resolve().name for folder in different]
    labels = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, different, strict=True)]
    runs = [_read(folder, label) for folder, label in zip(different, labels, strict=True)]
    kinds = {is_classifier(run.settings): run.status.folder for run in runs}
    if len(kinds) > 1:
        raise UserError(f"{kinds[False]} is a GAN and {kinds[True]} a classifier, which have no curve in common. Make two pages.")
    if not any(run.metrics or run.grids or run.scores for run in runs):
        raise UserError(f"{', '.join(str(run.status.folder) for run in runs)}: nothing to show yet (no metrics, no samples).")
    return runs


def _read(folder: Path, label: str) -> RunRecord:
    settings, status = read_run_settings(folder), read_status(folder)
    metrics = _read_lines(folder / METRICS)
    pictures = sorted((folder / "samples").glob("step-*.png"))
    near = folder / NEIGHBOURS
    return RunRecord(
        label=label,
        status=status,
        settings=settings,
        environment=_environment(folder),
        metrics=metrics,
        probes=_read_lines(folder / PROBES),
        scores=[record for record in scores.read(folder) if is_whole(record.get("step"))],
        events=list(_events(metrics, settings, status)),
        grids={int(path.stem[5:]): path for path in pictures if path.stem[5:].isdecimal()},
        neighbours=near if near.is_file() else None,
    )


def _read_lines(path: Path) -> list[Record]:
    try:
        return read_records(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{path}: {error} is damaged. Restore the file from a copy, or remove the line.") from None


def _environment(folder: Path) -> dict[str, str]:
    starts = read_starts(folder)
    if not starts:
        return {}
    found: dict[str, str] = {"starts": f"{len(starts)}"}
    for key in _ENVIRONMENT:
        value = starts[-1].get(key)
        if key == "versions" and isinstance(value, dict):
            found |= {name: str(version) for name, version in value.items()}
        elif key == "command" and isinstance(value, list):
            found[key] = " ".join(map(str, value))
        elif value is not None:
            found[key] = value if isinstance(value, str) else json.dumps(value)
    return found


def _events(metrics: Sequence[Record], settings: Settings, status: RunStatus) -> Iterator[Event]:
    """Yield the warnings of ``status`` at all steps at which they began, in the order of steps."""
    chance, least = health_limit(settings, "chance_steps"), health_limit(settings, "min_spread")
    at_chance = collapsed = False
    for record in metrics:
        step, steps, spread = record["step"], record.get("d_chance_steps"), record.get("samples_spread")
        if steps is not None and is_number(steps):
            before, at_chance = at_chance, 0 < chance <= steps
            if at_chance and not before:
                yield Event(step, f"D at chance for {steps:g} steps")
        if spread is not None and is_number(spread):
            before, collapsed = collapsed, spread < least and step >= WARM_UP
            if collapsed and not before:
                yield Event(step, f"samples collapsed (spread {spread:.1%} of real images)")
    if status.diverged:
        yield Event(status.step, next(iter(status.warnings), "diverged"))


def shared_and_different(columns: Sequence[dict[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the entries of ``columns`` that are equal in all as rows (key, value), and the others as rows (key, values...)."""
    shared, different = [], []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key, "-") for column in columns]
        if len(set(values)) == 1:
            shared.append([key, values[0]])
        else:
            different.append([key, *values])
    return shared, different
