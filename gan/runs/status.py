"""The state of a run from its folder alone, while it trains or after: progress, rate, losses, scores, health."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from gan.runs import checkpoints, scores
from gan.runs.checkpoints import MILESTONES
from gan.runs.folder import DIVERGED, is_run
from gan.runs.lock import holder
from gan.runs.manifest import MANIFEST
from gan.runs.metrics import METRICS, last_values
from gan.utils.errors import UserError
from gan.utils.safe_reading import MAX_JSON, is_number, parse_json, read_file, read_records
from gan.utils.settings import MAX_BYTES
from gan.utils.yaml_settings import read_settings

WARM_UP = 200  # updates before which equal samples are no sign of collapse: an untrained generator's are nearly equal
_FAILURES = {DIVERGED: "reason", "failed.json": "error"}  # files of a diverged run, with the entry that tells why
Settings = Mapping[str, str]  # as text, by dotted key


@dataclass(frozen=True)
class RunStatus:
    """What a run's folder says about its training."""

    folder: Path
    step: int  # of the newest record or checkpoint
    complete: bool  # whether the checkpoint of the last step is there, with its samples and scores
    total: int | None  # steps of the whole run; None where the number of images is not known yet
    steps_per_second: float | None  # of the last record, without evaluations; None before the first
    losses: dict[str, float]  # of the last record
    score: str  # last and best, as text; "" without any
    warnings: list[str]
    diverged: bool
    holder: str  # the process that trains in it; ""

    @property
    def state(self) -> str:
        """One word: diverged, running, done or stopped."""
        if self.diverged:
            return "diverged"
        if self.holder:
            return "running"
        return "done" if self.complete else "stopped"

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training that are left at the last rate, without evaluations; None where that is unknown."""
        if self.total is None or not self.steps_per_second:
            return None
        return max(0, self.total - self.step) / self.steps_per_second


def read_status(folder: Path, total: int | None = None) -> RunStatus:
    """Return the state of the run in ``folder``, which is to have ``total`` steps (None: as its settings say).

    Raises UserError where there is no run or its files are damaged.
    """
    settings, config = read_run_settings(folder), folder / "config.yaml"
    try:
        batch = _number(settings, "training.batch_size") * _number(settings, "training.d_steps", "1")
        total = total or _total_steps(settings, folder)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{config}: damaged ({str(error).rstrip('.')}). Restore it from a copy.") from None
    record = last_values(folder / METRICS, "images_per_second", "seconds")
    losses = {key: value for key, value in record.items() if key in ("d_loss", "g_loss", "loss") and is_number(value)}
    newest = checkpoints.steps(folder / "checkpoints")
    number = newest[-1].name.removeprefix("step-") if newest else "0"
    saved = int(number) if number.isdecimal() else 0
    classifier = is_classifier(settings)
    return RunStatus(
        folder=folder,
        step=max(saved, int(record.get("step", 0))),
        complete=total is not None and 0 < total <= saved and checkpoints.is_evaluated(newest[-1]),
        total=total,
        steps_per_second=record["images_per_second"] / batch if record else None,
        losses=losses,
        score=_accuracies(folder) if classifier else _distances(folder),
        warnings=_warnings(folder, settings, record),
        diverged=any((folder / name).exists() for name in _FAILURES),
        holder=holder(folder),
    )


def read_run_settings(folder: Path) -> Settings:
    """Return the settings of the run in ``folder``, of any kind. Raises UserError where there is none or they are damaged."""
    if not is_run(folder):
        raise UserError(f"{folder}: not a run (no config.yaml in it). Expected a run's folder, or one that contains runs.")
    config = folder / "config.yaml"
    try:
        return read_settings(read_file(config, MAX_BYTES).decode())
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: damaged ({str(error).rstrip('.')}). Restore it from a copy.") from None


def find_runs(given: Path) -> list[Path]:
    """Return ``given`` where it is a run, the run of a checkpoint, else the runs in it. Raises UserError where there are none.

    An export has settings too, but is no run.
    """
    if (given / MANIFEST).exists():
        inner = given.resolve()
        around = [inner.parents[1]] if inner.parent.name in ("checkpoints", MILESTONES) else [inner.parent]
        found = [path for path in around if is_run(path)]
    elif is_run(given):
        found = [given]
    else:
        found = sorted(path for path in given.glob("*") if is_run(path) and not (path / MANIFEST).exists())
    if not found:
        raise UserError(f"{given}: no run. Expected a run's folder (with config.yaml in it), or one that contains runs.")
    return found


def _number(settings: Settings, key: str, default: str | None = None) -> float:
    """Return a setting that must be a positive number. Raises ValueError for anything else."""
    text = settings.get(key, default)
    number = float(text) if text is not None else math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{key}={text}")
    return number


def _total_steps(settings: Settings, folder: Path) -> int | None:
    """Return the steps of a GAN; of a classifier, the batches in its epochs, once it has recorded its number of images."""
    if "training.epochs" not in settings:
        return int(_number(settings, "training.steps"))
    try:
        data = str(parse_json(read_file(folder / "environment.json", MAX_JSON))["starts"][-1]["data"])
        images = int(data.rpartition("-")[2].partition("x")[0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    if not 0 < images < 2**63:  # damaged
        return None
    epochs, batch = (Fraction(str(_number(settings, f"training.{key}"))) for key in ("epochs", "batch_size"))
    steps = math.ceil(epochs * images / batch)
    if steps >= 2**63:
        raise ValueError(f"training.epochs={settings['training.epochs']}")
    return steps


def _distances(folder: Path) -> str:
    """Return the last score of a GAN and the best one that compares with it."""
    found = scores.read(folder)
    if not found:
        return ""
    last = found[-1]
    best = min((record for record in found if record["series"] == last["series"]), key=scores.distance_of)
    extractor = last["provenance"]["extractor"]["extractor"]
    numbers = f"{scores.distance_of(last):.4g}, best {scores.distance_of(best):.4g} at step {best.get('step', '?')}"
    return f"Frechet distance {numbers} ({extractor}, {last['protocol']})"


def _accuracies(folder: Path) -> str:
    """Return the last and the best test accuracy of a classifier."""
    path = folder / METRICS
    if not last_values(path, "test_accuracy"):
        return ""
    try:
        tests = [record for record in read_records(path) if is_number(record.get("test_accuracy"))]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: a damaged line, or no file ({error}). Restore it from a copy.") from None
    best = max(tests, key=lambda record: record["test_accuracy"])
    return f"test accuracy {tests[-1]['test_accuracy']:.2%}, best {best['test_accuracy']:.2%} at step {best['step']}"


def _warnings(folder: Path, settings: Settings, record: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the training: the reason for which it diverged, D at chance, a collapsed generator."""
    found = [reason] if (reason := _failure(folder)) else []
    chance, steps = health_limit(settings, "chance_steps"), record.get("d_chance_steps", 0)
    if is_number(steps) and 0 < chance <= steps:
        found.append(f"D at chance for {steps:g} steps")
    spread = last_values(folder / METRICS, "samples_spread")
    if spread and spread["samples_spread"] < health_limit(settings, "min_spread") and spread["step"] >= WARM_UP:
        found.append(f"samples collapsed at step {spread['step']} (spread {spread['samples_spread']:.1%} of real images)")
    return found


def _failure(folder: Path) -> str:
    """Return why the run diverged, as training or a classifier's test has noted it; "" where it has not."""
    for name, key in _FAILURES.items():
        try:
            return str(parse_json(read_file(folder / name, MAX_JSON))[key])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            return f"{name} is damaged"
    return ""


def health_limit(settings: Settings, name: str) -> float:
    """Return a limit of the section health; 0, which means none, where it is missing or no number."""
    try:
        return float(settings.get(f"health.{name}", "0"))
    except ValueError:
        return 0.0


def is_classifier(settings: Settings) -> bool:
    """Return whether the run with these settings trains a classifier, not a GAN."""
    return any(key.startswith("probes.") for key in settings)
