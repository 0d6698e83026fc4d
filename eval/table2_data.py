"""What runs have scored: read from their folders, checked for comparability, put into words and into rows of a table."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from eval.comparison_keys import REMARKED, comparison_key, describe_difference, is_published_extractor
from gan.config import GanConfig, load_config
from gan.data.datasets import load_images
from gan.data.decoding import MAX_FILE_BYTES
from gan.inference.images import encode, grid
from gan.runs import scores
from gan.runs.grouping import differing_settings, group_by_seed
from gan.utils.command_lines import command_line
from gan.utils.errors import UserError
from gan.utils.safe_reading import read_file, read_records

Record = dict[str, Any]
COLUMNS = ("paper", "sngan", "standard", "quick")
_GRIDS = 4  # pictures along a training


@dataclass(frozen=True)
class Point:
    """A generator's distance at a moment of its training."""

    step: int
    minutes: float | None
    distance: float


@dataclass(frozen=True)
class RunScores:
    """One training."""

    name: str
    seed: int
    records: dict[str, Record]  # by protocol: that of the most trained generator
    curve: list[Point]
    grids: list[tuple[int, bytes]]  # step and PNG, oldest first
    minutes: dict[str, float | None]  # of training, as recorded, up to each protocol's score


@dataclass(frozen=True)
class Table2Row:
    """One configuration, trained once or with several seeds."""

    label: str
    runs: list[RunScores]


@dataclass(frozen=True)
class Table:
    """Everything that the report shows."""

    rows: list[Table2Row]
    columns: list[str]  # protocols
    extractor: dict[str, Any]  # its identity
    published: bool  # whether published numbers may stand beside these
    floors: dict[str, Record | None]  # by protocol: real images scored as if generated
    provenance: dict[str, Record]  # by protocol
    curve: Record | None  # one of the records that the curves are made of
    real_grid: bytes | None
    notes: list[str]


def label_of(config: GanConfig) -> str:
    """A configuration's name, by what the paper's table tells apart."""
    norm, loss = config.model.discriminator.norm, config.loss
    if norm == "mean_spectral" and loss.name in ("sngan", "hinge"):
        return "MSNGAN" + " (hinge)" * (loss.name == "hinge")
    if norm == "spectral" and loss.name in ("sngan", "hinge"):
        return "SNGAN" + " (hinge)" * (loss.name == "hinge")
    names = {"none": "no norm", "batch": "with BN", "spectral": "with SN", "mean_spectral": "with MSN"}
    clip = f", clipped at {loss.clip}" if loss.clip is not None else ""
    return f"{loss.name.upper()} ({names[norm]}{clip})"


def collect(folders: Sequence[Path], extractor: str | None = None) -> Table:
    """The table of the runs in ``folders``. Raises UserError where there is no score, or scores do not compare."""
    configs: dict[Path, GanConfig] = {}
    records: dict[Path, list[Record]] = {}
    for folder in {path.resolve(): path for path in folders}.values():
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: not a run's folder (no config.yaml in it). Expected folders such as runs/cifar10_msngan.")
        configs[folder] = load_config(folder / "config.yaml")
        records[folder] = [r for r in scores.read(folder) if extractor in (None, _identity(r)["extractor"])]
        if not any(r["source"] == "command" for r in records[folder]):
            which = f" by {extractor}" if extractor else ""
            command = command_line("eval", "score", folder, "--protocol", "paper")
            raise UserError(f"{folder}: no scores{which} yet. Score it with: {command}")
    names = {str(_identity(r)["extractor"]) for own in records.values() for r in own if r["source"] == "command"}
    if len(names) > 1:
        raise UserError(f"the runs have scores by {' and '.join(sorted(names))}, which do not compare. Choose with --extractor.")
    (name,) = names
    chosen = {column: found for column in COLUMNS if (found := _comparable(records, column))}
    first = {column: next(iter(found.values())) for column, found in chosen.items()}
    _check_columns(first)
    curve = _curve_series([r for own in records.values() for r in own if _identity(r)["extractor"] == name])
    runs = []
    for folder, config in configs.items():
        own = {column: found[folder] for column, found in chosen.items() if folder in found}
        runs.append((_run_scores(folder, config, own, records[folder], curve), config))
    identity = _identity(next(iter(first.values())))
    return Table(
        rows=_rows(runs),
        columns=list(chosen),
        extractor=identity,
        published=is_published_extractor(identity) and all(_is_the_papers(config) for config in configs.values()),
        floors={column: record["floor"] for column, record in first.items()},
        provenance={column: record["provenance"] for column, record in first.items()},
        curve=next((r for own in records.values() for r in own if curve == comparison_key(r["provenance"])), None),
        real_grid=_real_grid(next(iter(configs.values()))),
        notes=[note for column, found in chosen.items() if (note := _remark(list(found.values()), column))],
    )


def _identity(record: Record) -> dict[str, Any]:
    identity: dict[str, Any] = record["provenance"]["extractor"]
    return identity


def _is_the_papers(config: GanConfig) -> bool:
    """Whether a run is on the data that Table II was measured on."""
    data = config.data
    return (data.name, data.split, data.image_size, data.channels) == ("cifar10", "train", 32, 3)


def _comparable(records: dict[Path, list[Record]], protocol: str) -> dict[Path, Record]:
    """One score of each run that has any under ``protocol``, all of the same series: that of the most trained generator.

    Where runs share several series, the averaged generators' and the lowest seed's is taken. Raises UserError where they
    share none.
    """
    by_series: dict[Path, dict[str, Record]] = {}
    for folder, own in records.items():
        for record in own:
            if record["source"] == "command" and record["protocol"] == protocol:
                found = by_series.setdefault(folder, {})
                key = comparison_key(record["provenance"])
                if key not in found or record["step"] >= found[key]["step"]:
                    found[key] = record
    if not by_series:
        return {}
    shared = set.intersection(*(set(found) for found in by_series.values()))
    if not shared:
        _refuse(by_series, protocol)
    first = next(iter(by_series.values()))
    best = min(shared, key=lambda key: (first[key]["provenance"]["weights"] != "ema", first[key]["provenance"]["seed"], key))
    return {folder: found[best] for folder, found in by_series.items()}


def _refuse(by_series: dict[Path, dict[str, Record]], protocol: str) -> NoReturn:
    newest = {folder: list(found.values())[-1]["provenance"] for folder, found in by_series.items()}
    (one, a), *others = newest.items()
    for other, b in others:
        if difference := describe_difference(a, b):
            raise UserError(
                f"{one.name} and {other.name} cannot stand in one table: their {protocol} scores differ in {difference}."
                " Score both in the same way, or choose with --extractor."
            )
    raise UserError(f"the runs' {protocol} scores have nothing in common. Score all of them in the same way.")


def _check_columns(first: dict[str, Record]) -> None:
    """Raises UserError where two protocols' scores are by another network or against other images."""
    (one, a), *others = first.items()
    for other, b in others:
        for key in ("extractor", "image", "weights"):
            if difference := describe_difference(a["provenance"], b["provenance"], (key,)):
                raise UserError(f"the {one} and {other} scores cannot stand in one table: they differ in {difference}.")
        real = [record["provenance"]["reference"].get("images") for record in (a, b)]
        if real[0] != real[1]:
            raise UserError(f"the {one} and {other} scores cannot stand in one table: their references are different images.")


def _curve_series(records: list[Record]) -> str | None:
    """The series of scores with the most points, of all runs together."""
    counts = Counter(comparison_key(record["provenance"]) for record in records)
    return counts.most_common(1)[0][0] if counts else None


def _run_scores(
    folder: Path, config: GanConfig, chosen: dict[str, Record], records: list[Record], curve: str | None
) -> RunScores:
    points = {r["step"]: r["scores"]["fid"]["mean"] for r in records if comparison_key(r["provenance"]) == curve}
    minutes_at = _clock(folder)
    last = max((record["step"] for record in chosen.values()), default=0)
    pictures = [path for path in sorted((folder / "samples").glob("step-*.png")) if _step_of(path) <= last]
    shown = sorted({round(i * (len(pictures) - 1) / (_GRIDS - 1)) for i in range(_GRIDS)}) if pictures else []
    return RunScores(
        name=folder.name,
        seed=config.seed,
        records=chosen,
        curve=[Point(step, minutes_at(step), distance) for step, distance in sorted(points.items())],
        grids=[(_step_of(pictures[i]), _picture(pictures[i])) for i in shown],
        minutes={name: minutes_at(record["step"]) for name, record in chosen.items()},
    )


def _picture(path: Path) -> bytes:
    try:
        return read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _step_of(path: Path) -> int:
    match = re.search(r"(\d+)", path.stem)
    return int(match.group(1)) if match else 0


def _clock(folder: Path) -> Callable[[int], float | None]:
    """How many minutes of training, without stops and scores, had passed at a step, by the run's records; None where they
    are not."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return lambda step: None
    try:
        records = [(line["step"], float(line["seconds"])) for line in read_records(path) if "seconds" in line]
    except (OSError, ValueError, TypeError, OverflowError):
        raise UserError(f"{path}: a line is damaged. Restore the file from a copy, or remove the line.") from None
    return lambda step: sum(seconds for at, seconds in records if at <= step) / 60


def _remark(records: list[Record], protocol: str) -> str | None:
    """What the scores differ in without becoming incomparable."""
    first, *others = (record["provenance"] for record in records)
    for other in others:
        if found := describe_difference(first, other, REMARKED):
            return f"The {protocol} scores were not all made with the same versions and device ({found}): last digits may differ."
    return None


def _rows(found: list[tuple[RunScores, GanConfig]]) -> list[Table2Row]:
    """Return one row for all seeds of a configuration, in the paper's order."""
    groups = group_by_seed(found, config_of=lambda member: member[1], name_of=lambda member: member[0].name)
    labels = [label_of(group.runs[0][1]) for group in groups]
    rows = []
    for label, group in zip(labels, groups, strict=True):
        runs = [run for run, _ in group.runs]
        _check_steps(runs)
        others = [other.settings for name, other in zip(labels, groups, strict=True) if name == label and other is not group]
        apart = ", ".join(f"{key}={value}" for key, value in differing_settings(group.settings, others).items())
        rows.append(Table2Row(f"{label} [{apart}]" if apart else label, runs))
    order = ["WGAN-GP (with BN)", "SNGAN", "MSNGAN"]
    return sorted(rows, key=lambda row: next((i for i, name in enumerate(order) if row.label.startswith(name)), len(order)))


def _check_steps(runs: list[RunScores]) -> None:
    """Raise UserError when seeds of one configuration were scored at different steps."""
    for index, run in enumerate(runs):
        for other in runs[:index]:
            for protocol in {*run.records} & {*other.records}:
                steps = other.records[protocol]["step"], run.records[protocol]["step"]
                if steps[0] != steps[1]:
                    raise UserError(
                        f"{other.name} and {run.name} are seeds of one configuration, but their {protocol} scores are of step"
                        f" {steps[0]} and {steps[1]}. Train and score both as far as each other."
                    )


def _real_grid(config: GanConfig) -> bytes | None:
    """64 of the images that the runs were trained on, where they are at hand without a download."""
    try:
        if config.data.name not in ("digits", "folder"):
            return None
        images = load_images(config.data)
        step = max(1, len(images) // 64)
        chosen = [images[index] for index in range(0, len(images), step)][:64]
        return encode(grid(torch.stack(chosen)))
    except UserError:
        return None
