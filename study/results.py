"""Read the settings, tests and probes that classifier runs recorded."""

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gan.runs.folder import is_run, recorded_images
from gan.runs.grouping import SeedGroup, group_by_seed
from gan.runs.manifest import MANIFEST
from gan.runs.metrics import METRICS, PROBES
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.safe_reading import MAX_JSON, is_number, is_whole, parse_json, read_file, read_records
from gan.utils.settings import MAX_BYTES, load
from study.config import MODEL_NAMES, NORM_NAMES, StudyConfig

FAILED = "failed.json"
PART = "part.json"  # which part of the released SN a run of study.causes has; of an ordinary run there is none
# Numbers that the figures need in each probe, beside the gradient's histogram and its shares of small entries.
_PROBED = (
    "gradient_zero", "gradient_std", "gradient_max", "weight_mean", "weight_std", "preactivation_mean", "singular_kernel_mean",
)  # fmt: skip
NEARLY_ZERO = "1e-06"  # of probes.THRESHOLDS: the share of the gradient's entries below it is in the figures
Record = dict[str, Any]


@dataclass(frozen=True)
class ClassifierRun:
    """One run's folder and settings; its records are read when they are used."""

    folder: Path
    config: StudyConfig

    @property
    def model(self) -> str:
        """The network's name, with the variant unless that is ``full``."""
        model = self.config.model
        return model.name if model.variant == "full" else f"{model.name}, {model.variant}"

    @cached_property
    def images(self) -> str:
        """The fingerprint of its training and test images, from environment.json; empty without that file."""
        return recorded_images(self.folder)

    @cached_property
    def part(self) -> str:
        """The part of the released SN that study.causes trained it with; "none" of an ordinary run."""
        return read_part(self.folder) or "none"

    @property
    def trained_on(self) -> int | None:
        """The number of training images; None where it is unknown."""
        return _count(self.images.rpartition("+")[2])

    @property
    def tested_on(self) -> int | None:
        """The number of test images; None where it is unknown."""
        return _count(self.images.partition("+")[0]) if "+" in self.images else None

    @cached_property
    def metrics(self) -> list[Record]:
        return _read_records(self.folder / METRICS, lambda record: "test_accuracy" not in record or _is_test(record))

    @cached_property
    def probes(self) -> list[Record]:
        return _read_records(self.folder / PROBES, _is_probe)

    @property
    def tests(self) -> list[Record]:
        """Records with "epoch", "test_accuracy" (0 to 1) and "test_loss", in the order of epochs."""
        return [record for record in self.metrics if "test_accuracy" in record]

    @property
    def failure(self) -> str | None:
        """The error by which it diverged; None for a run that has not."""
        return _read_text(self.folder / FAILED, "error", "Remove it to train the run again.")

    @property
    def complete(self) -> bool:
        """Whether the run was tested after its last epoch."""
        tests = self.tests
        return bool(tests) and tests[-1]["epoch"] >= self.config.training.epochs

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last recorded epoch, from 0 to 1."""
        return float(self.tests[-1]["test_accuracy"])

    def probed(self, layer: int) -> list[Record]:
        """Return the probes of one layer, in the order of steps."""
        return [record for record in self.probes if record["layer"] == layer]

    @cached_property
    def layers(self) -> list[int]:
        """Numbers of the probed layers, ascending."""
        return sorted({int(record["layer"]) for record in self.probes})


def _count(fingerprint: str) -> int | None:
    """Return the number of images in a fingerprint such as "1d0c-60000x1x28x28"."""
    count = fingerprint.rpartition("-")[2].partition("x")[0]
    return int(count) if count.isdecimal() and len(count) < 19 else None


def _read_text(path: Path, key: str, advice: str) -> str | None:
    """Return the text under ``key`` in a small JSON file; None where there is no file. Raises UserError for a damaged one."""
    if not path.exists():
        return None
    try:
        return str(parse_json(read_file(path, MAX_JSON))[key])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged. {advice}") from None


def _read_records(path: Path, is_valid: Callable[[Record], bool]) -> list[Record]:
    """Return the records of a JSONL file. Raises UserError when one is damaged or lacks a value."""
    try:
        records = read_records(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: a damaged line, or no file ({error}). Restore it from a copy.") from None
    for number, record in enumerate(records, 1):
        if not is_valid(record):
            raise UserError(f"{path}: a damaged line (line {number}). Restore it from a copy.")
    return records


def _is_test(record: Record) -> bool:
    return all(is_number(record.get(key)) for key in ("epoch", "test_accuracy", "test_loss"))


def _is_probe(record: Record) -> bool:
    shares, counts = record.get("gradient_below"), record.get("gradient_histogram")
    numbers = [record.get(key) for key in _PROBED]
    if not (is_whole(record.get("layer")) and isinstance(shares, dict) and isinstance(counts, list)):
        return False
    if NEARLY_ZERO not in shares or not counts:
        return False
    return all(map(is_number, [*numbers, *shares.values(), *counts]))


def read_run(folder: Path) -> ClassifierRun:
    """Return the classifier run in ``folder``. Raises UserError where there is none."""
    if not is_run(folder):
        raise UserError(f"{folder}: not a run (no config.yaml in it). Expected a run's folder, or one that contains runs.")
    return ClassifierRun(folder, load(StudyConfig, folder / "config.yaml"))


def _is_study(folder: Path) -> bool:
    """Return whether a run trains a classifier: runs of GANs may be in the same folder."""
    try:
        return b"\nprobes:" in read_file(folder / "config.yaml", MAX_BYTES)
    except OSError:
        return True  # ``load`` reports the error


def read_runs(folders: Iterable[Path]) -> list[ClassifierRun]:
    """Return the classifier runs in ``folders``, each run once. A folder is a run, one of its checkpoints, or contains runs.

    Runs that differ in nothing are one training: ``train`` and ``sweep`` may have trained it under two names. The one that
    has come further is taken, and a warning names both.

    Raises UserError for a folder without a run.
    """
    found: dict[Path, ClassifierRun] = {}
    for given in folders:
        folder = given.parent.parent if (given / MANIFEST).exists() else given
        inner = [folder] if is_run(folder) else sorted(path for path in folder.glob("*") if is_run(path) and _is_study(path))
        if not inner:
            raise UserError(f"{given}: no run of a classifier. Expected a run's folder, or one that contains runs.")
        for path in inner:
            found.setdefault(path.resolve(), read_run(path))
    return without_doubles(found.values())


def without_doubles(runs: Collection[ClassifierRun]) -> list[ClassifierRun]:
    """Return ``runs`` without those that are the same training as another one that has come further, which is warned of."""
    groups = _group_by_seed(runs, lambda run: (run.failure is None, run.tests[-1]["epoch"] if run.tests else 0))
    kept = {run.folder for group in groups for run in group.runs}
    return [run for run in runs if run.folder in kept]


def _group_by_seed(
    runs: Iterable[ClassifierRun], progress_of: Callable[[ClassifierRun], Any] | None = None
) -> list[SeedGroup[ClassifierRun]]:
    return group_by_seed(
        runs,
        config_of=lambda run: run.config,
        name_of=lambda run: run.folder,
        further=lambda run: {"images": run.images, "part": run.part},
        progress_of=progress_of,
    )


@dataclass
class ComparableRuns:
    """Runs of one model that differ only by norm, learning rate and seed."""

    settings: dict[str, Any]  # by dotted key, and "images": what the runs share
    runs: dict[tuple[str, float], list[ClassifierRun]]  # by norm and learning rate, in the order of seeds

    @property
    def first(self) -> ClassifierRun:
        return next(iter(self.runs.values()))[0]

    @property
    def rates(self) -> set[float]:
        return {rate for _, rate in self.runs}

    def of_rate(self, rate: float) -> dict[str, list[ClassifierRun]]:
        """Return the runs of one learning rate by norm, in the order of NORM_NAMES."""
        return {norm: self.runs[norm, rate] for norm in NORM_NAMES if (norm, rate) in self.runs}


def comparable_runs(runs: Iterable[ClassifierRun]) -> list[ComparableRuns]:
    """Return ``runs`` in groups that one table row or figure may compare, in the order of models, then of settings.

    Raises UserError when two runs differ in nothing: one training would count twice.
    """
    found: dict[str, ComparableRuns] = {}
    for group in _group_by_seed(runs):
        settings = dict(group.settings)
        norm_and_rate = settings.pop("model.norm"), settings.pop("optimizer.lr")
        comparable = found.setdefault(repr(settings), ComparableRuns(settings, {}))
        comparable.runs[norm_and_rate] = sorted(group.runs, key=lambda run: run.config.seed)
    return sorted(found.values(), key=lambda group: (list(MODEL_NAMES).index(group.first.model), repr(group.settings)))


def read_part(folder: Path) -> str:
    """Return the part of the released SN that the run in ``folder`` was trained with by study.causes; "" of an ordinary run."""
    return _read_text(folder / PART, "part", "Restore it from a copy.") or ""


def check_part(folder: Path, part: str) -> None:
    """Write the ``part`` that a run in ``folder`` is trained with. Raises UserError where it has been trained with another."""
    found = read_part(folder)
    if found and found != part:
        raise UserError(f"{folder}: a run of python -m study.causes {found}. Train it on with that, or choose another run.name.")
    if part and not found:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PART, (json.dumps({"part": part}) + "\n").encode())


def write_failure(folder: Path, error: str) -> None:
    """Write the ``error`` by which the run diverged into its ``folder``, so that a sweep does not repeat it."""
    write_atomically(folder / FAILED, (json.dumps({"error": error}) + "\n").encode())
