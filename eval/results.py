"""What runs have scored: read from their folders, checked for comparability, put into words and into rows of a table."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eval import protocols
from eval.extractors import OF_THE_LITERATURE
from eval.protocols import PROTOCOLS
from gan import sampling, scores
from gan.config import CHANGEABLE, Config, flatten, load_config
from gan.data import load_images
from gan.errors import UserError

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
    step: int
    records: dict[str, Record]  # by protocol: the newest
    curves: dict[str, list[Point]]  # by protocol
    grids: list[tuple[int, bytes]]  # step and PNG, oldest first
    settings: dict[str, Any]
    minutes: float | None  # of training, as recorded


@dataclass(frozen=True)
class Row:
    """One configuration, trained once or with several seeds."""

    label: str
    runs: list[RunScores]


@dataclass(frozen=True)
class Table:
    """Everything that the report shows."""

    rows: list[Row]
    columns: list[str]  # protocols
    extractor: str
    published: bool  # whether published numbers may stand beside these
    floors: dict[str, Record | None]  # by protocol: real images scored as if generated
    provenance: dict[str, Record]  # by protocol
    real_grid: bytes | None = None
    notes: list[str] = field(default_factory=list)


def label_of(config: Config) -> str:
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
    found: list[tuple[RunScores, Config]] = []
    for folder in dict.fromkeys(folders):
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: not a run's folder (no config.yaml in it). Expected folders such as runs/cifar10_msngan.")
        records = [r for r in scores.read(folder) if extractor in (None, _extractor_of(r))]
        if not any(r["source"] == "command" for r in records):
            which = f" by {extractor}" if extractor else ""
            raise UserError(f"{folder}: no scores{which} yet. Score it with: python -m eval score {folder} --protocol paper")
        found.append((_run_scores(folder, records), load_config(folder / "config.yaml")))
    columns = [name for name in COLUMNS if any(name in run.records for run, _ in found)]
    for column in columns:
        _check_comparable([run for run, _ in found if column in run.records], column)
    names = {_extractor_of(record) for run, _ in found for record in run.records.values()}
    if len(names) > 1:
        raise UserError(f"the runs have scores by {' and '.join(sorted(names))}, which do not compare. Choose with --extractor.")
    (name,) = names
    first = {column: next(run.records[column] for run, _ in found if column in run.records) for column in columns}
    return Table(
        rows=_rows(found),
        columns=columns,
        extractor=name,
        published=name in OF_THE_LITERATURE and all(config.data.name == "cifar10" for _, config in found),
        floors={column: record["floor"] for column, record in first.items()},
        provenance={column: record["provenance"] for column, record in first.items()},
        real_grid=_real_grid(found[0][1]),
    )


def _extractor_of(record: Record) -> str:
    return str(record["provenance"]["extractor"]["extractor"])


def _run_scores(folder: Path, records: list[Record]) -> RunScores:
    newest: dict[str, Record] = {}
    curves: dict[str, dict[int, float]] = {}
    latest = {record["protocol"]: record["series"] for record in records}
    for record in records:
        if record["series"] == latest[record["protocol"]]:
            curves.setdefault(record["protocol"], {})[record["step"]] = record["scores"]["fid"]["mean"]
        if record["source"] == "command":
            before = newest.get(record["protocol"])
            if before is None or record["step"] >= before["step"]:
                newest[record["protocol"]] = record
    config = load_config(folder / "config.yaml")
    minutes_at = _clock(folder)
    pictures = sorted((folder / "samples").glob("step-*.png"))
    step = max(record["step"] for record in newest.values())
    pictures = [path for path in pictures if _step_of(path) <= step]
    chosen = sorted({round(i * (len(pictures) - 1) / (_GRIDS - 1)) for i in range(_GRIDS)}) if pictures else []
    return RunScores(
        name=folder.name,
        seed=config.seed,
        step=step,
        records=newest,
        curves={
            name: [Point(at, minutes_at(at), distance) for at, distance in sorted(points.items())]
            for name, points in curves.items()
        },
        grids=[(_step_of(pictures[i]), pictures[i].read_bytes()) for i in chosen],
        settings=dict(flatten(config)),
        minutes=minutes_at(step),
    )


def _step_of(path: Path) -> int:
    match = re.search(r"(\d+)", path.stem)
    return int(match.group(1)) if match else 0


def _clock(folder: Path) -> Callable[[int], float | None]:
    """How many minutes of training, without stops, had passed at a step, by the run's records; None where they are not."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return lambda step: None
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    records = [(line["step"], line["seconds"]) for line in lines if "seconds" in line]
    return lambda step: sum(seconds for at, seconds in records if at <= step) / 60


def _check_comparable(runs: list[RunScores], protocol: str) -> None:
    for run in runs[1:]:
        if difference := protocols.incomparable(runs[0].records[protocol]["provenance"], run.records[protocol]["provenance"]):
            raise UserError(
                f"{runs[0].name} and {run.name} cannot stand in one table: their {protocol} scores differ in {difference}."
                " Score both again in the same way, or choose with --extractor."
            )


def _rows(found: list[tuple[RunScores, Config]]) -> list[Row]:
    """Runs that differ only in their seed, their name and what changes no weight are one row; in the paper's order."""
    ignored = {*CHANGEABLE, "seed"} - {"training.steps"}
    groups: dict[str, list[tuple[RunScores, Config]]] = {}
    for run, config in found:
        key = repr([item for item in flatten(config) if item[0] not in ignored])
        groups.setdefault(key, []).append((run, config))
    labels = [label_of(members[0][1]) for members in groups.values()]
    rows = []
    for label, members in zip(labels, groups.values(), strict=True):
        others = [m[0][0] for other, m in zip(labels, groups.values(), strict=True) if other == label and m is not members]
        rows.append(Row(label + _told_apart(members[0][0], others, ignored), [run for run, _ in members]))
    order = ["WGAN-GP (with BN)", "SNGAN", "MSNGAN"]
    return sorted(rows, key=lambda row: next((i for i, name in enumerate(order) if row.label.startswith(name)), len(order)))


def _told_apart(run: RunScores, others: list[RunScores], ignored: set[str]) -> str:
    """The settings by which a row differs from those of the same label."""
    keys = [k for k, v in run.settings.items() if k not in ignored and any(o.settings[k] != v for o in others)]
    return f" [{', '.join(f'{k}={run.settings[k]}' for k in keys)}]" if keys else ""


def _real_grid(config: Config) -> bytes | None:
    """64 of the images that the runs were trained on, where they are at hand without a download."""
    try:
        if config.data.name not in ("digits", "folder"):
            return None
        images = load_images(config.data)
        step = max(1, len(images) // 64)
        chosen = [images[index] for index in range(0, len(images), step)][:64]
        return sampling.encode(sampling.grid(torch.stack(chosen)))
    except UserError:
        return None


def figure(entry: dict[str, Any] | None, digits: int = 2) -> str:
    """A mean and its deviation, where there is one."""
    if entry is None:
        return "-"
    deviation = "" if entry.get("std") is None else f" ± {entry['std']:.{digits}f}"
    return f"{entry['mean']:.{digits}f}{deviation}"


def describe(run: str, record: Record) -> str:
    """A score for people, with what must be known to read it."""
    extractor, found, floor = _extractor_of(record), record["scores"], record["floor"]
    protocol = PROTOCOLS[record["protocol"]]
    distance, score = protocols.name_of_distance(extractor), protocols.name_of_score(extractor)
    pooled = found["pooled"]
    lines = [f"{run} at step {record['step']}, protocol {protocol.name}: {protocol.purpose}"]

    def add(name: str, value: str, real: str | None = None) -> None:
        lines.append(f"  {name:<42}{value:<22}{'' if real is None else f'real: {real}'}".rstrip())

    add(distance, figure(found["fid"]), figure(floor["fid"]) if floor else None)
    if found["inception_score"]:
        add(score, figure(found["inception_score"]), figure(floor["inception_score"]) if floor else None)
    if protocol.runs > 1:
        add(f"{distance}, all {protocol.total:,} images", f"{pooled['fid']:.2f}")
    if pooled["fid_infinity"] is not None:
        add("extrapolated to infinitely many", f"{pooled['fid_infinity']:.2f}")
    if found["kid"]:
        add("KID x 1000", figure(_thousandfold(found["kid"])), figure(_thousandfold(floor["kid"])) if floor else None)
    if pooled["precision"] is not None:
        real = f"{floor['pooled']['precision']:.3f} / {floor['pooled']['recall']:.3f}" if floor else None
        add("precision / recall", f"{pooled['precision']:.3f} / {pooled['recall']:.3f}", real)
    if floor:
        lines.append(f"  (real: {floor['source']}, {floor['runs']} x {floor['samples']:,} against {floor['reference']:,})")
    return "\n".join(lines)


def _thousandfold(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] * 1000 if entry[key] is not None else None for key in ("mean", "std")}


def describe_comparison(found: Record, extractor: str) -> str:
    """A comparison of two sets for people."""
    counts = " against ".join("an unknown number" if count is None else f"{count:,}" for count in found["counts"])
    lines = [f"{counts} images, {extractor}", f"  {protocols.name_of_distance(extractor):<42}{found['fid']:.4f}"]
    if found["inception_score"]:
        lines.append(
            f"  {protocols.name_of_score(extractor):<42}{figure(found['inception_score'], 4)}"
            f" ({found['inception_score']['splits']} splits)"
        )
    if found["kid"]:
        kid = found["kid"]
        lines.append(f"  {'KID x 1000':<42}{figure(_thousandfold(kid), 4)} ({kid['subsets']} subsets of {kid['size']})")
    if found["precision"] is not None:
        lines.append(f"  {'precision / recall':<42}{found['precision']:.4f} / {found['recall']:.4f}")
    return "\n".join(lines)
