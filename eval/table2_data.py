"""The scores of runs for Table II: checked for comparability, and grouped into a row for each configuration."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

import torch

from eval.comparison_keys import REMARKED, comparison_key, describe_difference, is_published_extractor
from eval.table2_runs import Record, RunScores, read_run_scores
from gan.config import GanConfig, load_config
from gan.data.datasets import load_images
from gan.inference.images import encode, grid
from gan.runs import scores
from gan.runs.grouping import differing_settings, group_by_seed
from gan.runs.manifest import MANIFEST
from gan.utils.command_lines import command_line
from gan.utils.errors import UserError

COLUMNS = ("paper", "sngan", "standard", "quick", "watch")


@dataclass(frozen=True)
class Table2Row:
    """One configuration, trained once or with several seeds."""

    label: str
    runs: list[RunScores]


@dataclass(frozen=True)
class Table:
    """Everything that the report shows."""

    rows: list[Table2Row]
    records: dict[str, Record]  # by protocol: one of its scores, with the reference and the floor that all of them share
    published: bool  # whether published numbers may stand beside these
    curve: Record  # one of the scores that the curves are made of
    real_grid: bytes | None
    notes: list[str]

    @property
    def extractor(self) -> dict[str, Any]:
        """The identity of the extractor."""
        return _extractor(next(iter(self.records.values())))


def collect(folders: Sequence[Path], extractor: str | None = None) -> Table:
    """Return the table of the runs in ``folders``. Raises UserError where there is no score, or scores do not compare."""
    configs: dict[Path, GanConfig] = {}
    records: dict[Path, list[Record]] = {}
    for folder in {path.resolve(): path for path in folders}.values():
        if (folder / MANIFEST).exists():
            raise UserError(f"{folder}: a checkpoint. Give the folder of its run, which has its scores.")
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: not a run's folder (no config.yaml in it). Expected folders such as runs/cifar10_msngan.")
        configs[folder] = load_config(folder / "config.yaml")
        every = scores.read(folder)
        records[folder] = [r for r in every if extractor in (None, _extractor(r)["extractor"])]
        if not any(r["source"] == "command" for r in records[folder]):
            raise UserError(_no_scores(folder, configs[folder], every, extractor))
    names = {_extractor(r)["extractor"] for own in records.values() for r in own if r["source"] == "command"}
    if len(names) > 1:
        raise UserError(f"the runs have scores by {' and '.join(sorted(names))}, which do not compare. Choose with --extractor.")
    offered = {protocol: found for protocol in COLUMNS if (found := _shared_series(records, protocol))}
    reference = _common_reference(offered)
    chosen = {protocol: _most_trained(found, reference) for protocol, found in offered.items()}
    if not chosen:
        others = " and ".join(sorted({str(r["protocol"]) for own in records.values() for r in own if r["source"] == "command"}))
        raise UserError(f"the runs have scores under {others} alone, which this version does not know. Score them again.")
    first = {protocol: _first(found) for protocol, found in chosen.items()}
    _check_protocols(first)
    curve = _curve_record([r for own in records.values() for r in own if _extractor(r)["extractor"] in names])
    runs = []
    for folder, config in configs.items():
        own = {protocol: found[folder] for protocol, found in chosen.items() if folder in found}
        runs.append((read_run_scores(folder, config, own, records[folder], comparison_key(curve["provenance"])), config))
    return Table(
        rows=_rows(runs),
        records=first,
        published=_beside_published(first, configs.values()),
        curve=curve,
        real_grid=_real_grid(next(iter(configs.values()))),
        notes=[
            *(note for protocol, found in chosen.items() if (note := _remark(list(found.values()), protocol))),
            *(note for protocol, series in offered.items() if (note := _other_references(series, first[protocol]))),
        ],
    )


def _no_scores(folder: Path, config: GanConfig, records: list[Record], extractor: str | None) -> str:
    """Return that a run lacks scores by command (by ``extractor``), which ``records`` it has instead, and what to type."""
    by_command = [r for r in records if r["source"] == "command"]
    shown = by_command or records
    names, protocols = (" and ".join(sorted({key(r) for r in shown})) for key in (_extractor_name, lambda r: str(r["protocol"])))
    has, choose = ".", ""
    if by_command:
        has, choose = f", but has some by {names} under {protocols}.", f"Choose --extractor {_extractor_name(shown[0])}. "
    elif records:
        has = f" by command, but {len(records)} made during training by {names} under {protocols}, by which best/ was chosen."
    protocol = shown[-1]["protocol"] if shown else "paper"
    chosen = extractor or (_extractor_name(shown[-1]) if shown else config.evaluation.extractor)
    words = ["--protocol", protocol, "--extractor", chosen]
    if config.evaluation.weights and chosen == config.evaluation.extractor:
        words += ["--extractor-weights", config.evaluation.weights]
    which = f" by {extractor}" if extractor else ""
    command = command_line("eval", "score", folder, *words)
    return f"{folder}: no scores{which} yet{has} {choose}Score it with: {command}"


def _extractor_name(record: Record) -> str:
    return str(_extractor(record)["extractor"])


def _extractor(record: Record) -> dict[str, Any]:
    identity: dict[str, Any] = record["provenance"]["extractor"]
    return identity


def _beside_published(first: dict[str, Record], configs: Iterable[GanConfig]) -> bool:
    """Return whether the paper's numbers may stand beside these: the same data, a reference of that name, the same extractor."""
    for config in configs:
        data = config.data
        if (data.name, data.split, data.image_size, data.channels) != ("cifar10", "train", 32, 3):
            return False
    references = [str(record["provenance"].get("reference_name")).lower() for record in first.values()]
    return is_published_extractor(_extractor(next(iter(first.values())))) and all(r.startswith("cifar10") for r in references)


def _shared_series(records: dict[Path, list[Record]], protocol: str) -> list[dict[Path, Record]]:
    """Return the series of scores under ``protocol`` that all runs with any share: of each run the most trained generator's.

    Raises UserError where they share none.
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
        return []
    shared = set.intersection(*(set(found) for found in by_series.values()))
    if not shared:
        _refuse(by_series, protocol)
    return [{folder: found[key] for folder, found in by_series.items()} for key in sorted(shared)]


def _common_reference(offered: dict[str, list[dict[Path, Record]]]) -> str | None:
    """Return the content of the reference that every protocol has a series against; None where there is none.

    Of several, the one with the most trained generators is taken.
    """
    steps: dict[str, int] = {}
    for series in offered.values():
        for found in series:
            name = _reference(_first(found))
            steps[name] = max(steps.get(name, 0), _steps(found))
    common = [name for name in steps if all(name in map(_reference, map(_first, series)) for series in offered.values())]
    return max(common, key=lambda name: (steps[name], name), default=None)


def _most_trained(series: list[dict[Path, Record]], reference: str | None) -> dict[Path, Record]:
    """Return the series to show, by: ``reference``, averaged generators, steps, a held-out floor, the lowest seed."""

    def rank(found: dict[Path, Record]) -> tuple[Any, ...]:
        made_with = _first(found)["provenance"]
        is_other = _reference(_first(found)) != reference
        return is_other, made_with["weights"] != "ema", -_steps(found), made_with.get("floor") is None, made_with["seed"]

    return min(series, key=rank)


def _first(found: dict[Path, Record]) -> Record:
    """Return one score of a series: all have the same reference, weights and seed."""
    return next(iter(found.values()))


def _steps(found: dict[Path, Record]) -> int:
    return sum(int(record["step"]) for record in found.values())


def _reference(record: Record) -> str:
    """Return what identifies the real images that a score was made against."""
    reference = record["provenance"]["reference"]
    return repr(reference.get("images", reference))


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


def _check_protocols(first: dict[str, Record]) -> None:
    """Raise UserError where the scores of two protocols are by another network or against other images."""
    (one, a), *others = first.items()
    for other, b in others:
        if difference := describe_difference(a["provenance"], b["provenance"], ("extractor", "image", "weights")):
            raise UserError(f"the {one} and {other} scores cannot stand in one table: they differ in {difference}.")
        if a["provenance"]["reference"].get("images") != b["provenance"]["reference"].get("images"):
            raise UserError(f"the {one} and {other} scores cannot stand in one table: their references are different images.")


def _curve_record(records: list[Record]) -> Record:
    """Return a record of the series of scores with the most points, of all runs together."""
    counts = Counter(comparison_key(record["provenance"]) for record in records)
    series = counts.most_common(1)[0][0]
    return next(record for record in records if comparison_key(record["provenance"]) == series)


def _remark(records: list[Record], protocol: str) -> str | None:
    """Return a note on what scores differ in without becoming incomparable."""
    first, *others = (record["provenance"] for record in records)
    for other in others:
        if found := describe_difference(first, other, REMARKED):
            return f"The {protocol} scores were not all made with the same versions and device ({found}): last digits may differ."
    return None


def _other_references(series: list[dict[Path, Record]], shown: Record) -> str | None:
    """Return a note on the references that the runs have ``series`` against, beside that of the score ``shown``."""
    others = {
        str(record["provenance"].get("reference_name"))
        for found in series
        if _reference(record := _first(found)) != _reference(shown)
    }
    if not others:
        return None
    name = shown["provenance"].get("reference_name")
    return f"The {shown['protocol']} scores are against {name}; the runs also have some against {', '.join(sorted(others))}."


def _rows(found: list[tuple[RunScores, GanConfig]]) -> list[Table2Row]:
    """Return one row for all seeds of a configuration, in the paper's order."""
    groups = group_by_seed(
        found,
        config_of=lambda member: member[1],
        name_of=lambda member: member[0].name,
        further=lambda member: {"images": member[0].images},
    )
    labels = [_label(group.runs[0][1]) for group in groups]
    rows = []
    for label, group in zip(labels, groups, strict=True):
        runs = [run for run, _ in group.runs]
        _check_steps(runs)
        others = [other.settings for name, other in zip(labels, groups, strict=True) if name == label]
        apart = ", ".join(f"{key}={value}" for key, value in differing_settings(group.settings, others).items())
        rows.append(Table2Row(f"{label} [{apart}]" if apart else label, runs))
    order = ["WGAN-GP (with BN)", "SNGAN", "MSNGAN"]
    return sorted(rows, key=lambda row: next((i for i, name in enumerate(order) if row.label.startswith(name)), len(order)))


def _label(config: GanConfig) -> str:
    """Return a configuration's name, by what the paper's table tells apart."""
    norm, loss = config.model.discriminator.norm, config.loss
    models = {"spectral": "SNGAN", "mean_spectral": "MSNGAN"}
    if norm in models and loss.name in ("sngan", "hinge"):
        return models[norm] + " (hinge)" * (loss.name == "hinge")
    names = {
        "none": "no norm", "batch": "with BN", "spectral": "with SN", "mean_spectral": "with MSN",
        "spectral_projected": "with projected SN", "mean_spectral_projected": "with projected MSN",
    }  # fmt: skip
    clip = f", clipped at {loss.clip}" if loss.clip is not None else ""
    return f"{loss.name.upper()} ({names[norm]}{clip})"


def _check_steps(runs: list[RunScores]) -> None:
    """Raise UserError when seeds of one configuration were scored at different steps."""
    for one, other in combinations(runs, 2):
        for protocol in one.records.keys() & other.records.keys():
            steps = one.records[protocol]["step"], other.records[protocol]["step"]
            if steps[0] != steps[1]:
                raise UserError(
                    f"{one.name} and {other.name} are seeds of one configuration, but their {protocol} scores are of step"
                    f" {steps[0]} and {steps[1]}. Train and score both as far as each other."
                )


def _real_grid(config: GanConfig) -> bytes | None:
    """Return 64 of the images that the runs were trained on, where they are at hand without a download."""
    if config.data.name not in ("digits", "folder"):
        return None
    try:
        images = load_images(config.data)
        chosen = [images[index] for index in range(0, len(images), max(1, len(images) // 64))][:64]
    except UserError:
        return None
    return encode(grid(torch.stack(chosen)))
