"""What runs of classifiers have recorded: their settings, tests and probes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gan.errors import UserError
from gan.files import write_atomically
from gan.runs import is_run
from gan.settings import load
from gan.tracking import METRICS, PROBES
from study.config import Study

FAILED = "failed.json"
Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One run's folder, read."""

    folder: Path
    config: Study

    @property
    def model(self) -> str:
        """Its network, with the variant where it is not the full one."""
        model = self.config.model
        return model.name if model.variant == "full" else f"{model.name}, {model.variant}"

    @cached_property
    def metrics(self) -> list[Record]:
        return _lines(self.folder / METRICS)

    @cached_property
    def probes(self) -> list[Record]:
        return _lines(self.folder / PROBES)

    @property
    def tests(self) -> list[Record]:
        """With "epoch", "test_accuracy" (from 0 to 1) and "test_loss", in the order of epochs."""
        return [record for record in self.metrics if "test_accuracy" in record]

    @property
    def failure(self) -> str | None:
        """Why it came to no end; None where it did, or may yet."""
        path = self.folder / FAILED
        if not path.exists():
            return None
        try:
            return str(json.loads(path.read_text())["error"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: damaged. Remove it to train the run again.") from None

    @property
    def complete(self) -> bool:
        """Whether it has been tested after its last epoch."""
        tests = self.tests
        return bool(tests) and tests[-1]["epoch"] >= self.config.training.epochs

    @property
    def accuracy(self) -> float:
        """On the test images after the last epoch, from 0 to 1."""
        return float(self.tests[-1]["test_accuracy"])

    def probed(self, layer: int) -> list[Record]:
        """The probes of one layer, in the order of steps."""
        return [record for record in self.probes if record["layer"] == layer]

    @cached_property
    def layers(self) -> list[int]:
        """Numbers of the layers that were probed."""
        return sorted({int(record["layer"]) for record in self.probes})


def _lines(path: Path) -> list[Record]:
    """The whole lines of a file of JSON objects."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    except ValueError:
        raise UserError(f"{path}: a damaged line. Restore it from a copy.") from None


def read_run(folder: Path) -> Result:
    """The run of a classifier in ``folder``. Raises UserError where there is none."""
    if not is_run(folder):
        raise UserError(f"{folder}: not a run (no config.yaml in it). Expected a run's folder, or one that holds runs.")
    return Result(folder, load(Study, folder / "config.yaml"))


def _is_study(folder: Path) -> bool:
    """Whether the run is of a classifier: GANs may lie beside it."""
    return "\nprobes:" in (folder / "config.yaml").read_text(errors="replace")


def read_runs(folders: Iterable[Path]) -> list[Result]:
    """The classifiers' runs in ``folders``, each a run or a folder that holds some. Raises UserError where one holds none."""
    found: list[Result] = []
    for folder in folders:
        inner = [folder] if is_run(folder) else sorted(path for path in folder.glob("*") if is_run(path) and _is_study(path))
        if not inner:
            raise UserError(f"{folder}: no run of a classifier. Expected a run's folder, or one that holds runs.")
        found += [read_run(path) for path in inner]
    return found


def note_failure(folder: Path, error: str) -> None:
    """Keeps why the run in ``folder`` came to no end, so that it is not tried again in vain."""
    write_atomically(folder / FAILED, (json.dumps({"error": error}) + "\n").encode())
