"""The curves of the page: which numbers of the runs stand in one panel."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gan.page.records import Record, RunRecord
from gan.runs.status import is_classifier
from gan.utils.safe_reading import is_number

Points = dict[int, float]  # by step; NaN where a number is missing


@dataclass(frozen=True)
class Line:
    """One curve."""

    run: int  # index of its run
    dashed: bool
    points: Points


@dataclass(frozen=True)
class Panel:
    """The curves of one quantity, of all runs."""

    title: str
    note: str
    lines: list[Line]
    logarithmic: bool = False
    floor: float | None = None  # the score of real images
    events: Sequence[tuple[int, int]] = ()  # index of a run and step of a health warning


# Title, note, keys of metrics.jsonl (solid, dashed), whether the axis is logarithmic.
_TRAINING = [
    ("Losses", "D solid, G dashed", ("d_loss", "g_loss"), False),
    ("Mean outputs of D", "D(x) solid, D(G(z)) dashed", ("d_real", "d_fake"), False),
    ("Gradient norms", "D solid, G dashed", ("d_grad_norm", "g_grad_norm"), True),
    ("Spread of samples", "1: that of as many real images", ("samples_spread",), False),
    ("Loss", "training solid, test dashed", ("loss", "test_loss"), False),
    ("Accuracy", "training solid, test dashed", ("accuracy", "test_accuracy"), False),
    ("Gradient norm", "of all weights", ("grad_norm",), True),
    ("Images a second", "real images, without evaluations", ("images_per_second",), False),
]
_PROBES = [
    ("gradient", "standard deviation solid, largest dashed", ("gradient_std", "gradient_max"), True),
    ("means", "pre-activation solid, weight dashed", ("preactivation_mean", "weight_mean"), False),
]
Find = Callable[[Record], Any]
# Title, note, where a score has its numbers (solid, dashed).
_SCORES: list[tuple[str, str, list[Find]]] = [
    ("Frechet distance", "lower is better", [lambda found: found["fid"]["mean"]]),
    ("Inception score", "higher is better", [lambda found: found["inception_score"]["mean"]]),
    ("KID x 1000", "lower is better", [lambda found: 1000 * found["kid"]["mean"]]),
    ("Precision and recall", "precision solid, recall dashed",
     [lambda found: found["pooled"]["precision"], lambda found: found["pooled"]["recall"]]),
    ("Density and coverage", "density solid, coverage dashed",
     [lambda found: found["pooled"]["density"], lambda found: found["pooled"]["coverage"]]),
]  # fmt: skip


def training_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    """Return the panels of metrics.jsonl; health warnings are marked in the first."""
    columns = [run.metrics for run in runs]
    panels = [panel for title, note, keys, log in _TRAINING if (panel := _of_keys(title, note, columns, keys, log)).lines]
    events = [(index, event.step) for index, run in enumerate(runs) for event in run.events]
    if events and panels:
        panels[0] = replace(panels[0], note=f"{panels[0].note}; bars: health warnings", events=events)
    return panels


def probe_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    """Return the panels of probes.jsonl: two for each layer."""
    if not any(is_classifier(run.settings) for run in runs):
        return []
    panels = []
    for layer in sorted({record["layer"] for run in runs for record in run.probes if isinstance(record.get("layer"), int)}):
        columns = [[record for record in run.probes if record.get("layer") == layer] for run in runs]
        panels += [_of_keys(f"Layer {layer}: {title}", note, columns, keys, log) for title, note, keys, log in _PROBES]
    return [panel for panel in panels if panel.lines]


def _of_keys(title: str, note: str, columns: Sequence[list[Record]], keys: Iterable[str], logarithmic: bool) -> Panel:
    lines = []
    for index, records in enumerate(columns):
        for number, key in enumerate(keys):
            points = {record["step"]: _number(record[key]) for record in records if key in record}
            lines += [Line(index, bool(number), points)] if points else []
    return Panel(title, note, lines, logarithmic)


def score_panels(runs: Sequence[RunRecord]) -> dict[str, list[Panel]]:
    """Return the panels of scores.jsonl by how the scores were made, so that only comparable ones meet in a panel."""
    groups: dict[str, list[Panel]] = {}
    for series in dict.fromkeys(record["series"] for run in runs for record in run.scores):
        columns = [[record for record in run.scores if record["series"] == series] for run in runs]
        newest = [record for records in columns for record in records][-1]
        panels = [_of_scores(title, note, columns, finds, newest["floor"]) for title, note, finds in _SCORES]
        groups.setdefault(_conditions(newest), []).extend(panel for panel in panels if panel.lines)
    return groups


def _of_scores(title: str, note: str, columns: Sequence[list[Record]], finds: Sequence[Find], floor: Record | None) -> Panel:
    lines = []
    for index, records in enumerate(columns):
        for number, find in enumerate(finds):
            values = {record["step"]: _found(find, record["scores"]) for record in records}
            points = {step: value for step, value in values.items() if value is not None}
            lines += [Line(index, bool(number), points)] if points else []
    real = None if floor is None or len(finds) > 1 else _found(finds[0], floor)
    return Panel(title, note if real is None else f"{note}; dotted: real images, {real:.4g}", lines, floor=real)


def _conditions(record: Record) -> str:
    """Return how a score and its floor were made."""
    made_with, floor = record["provenance"], record["floor"]
    when = "while training" if record["source"] == "training" else f"by command, seed {made_with['seed']}"
    network, against = made_with["extractor"]["extractor"], Path(str(made_with.get("reference_name", ""))).name
    text = f"By {network} under the protocol {record['protocol']}, {made_with['weights']} weights, {when}"
    text += f", against {against}." if against else "."
    if floor is None:
        return text
    return f"{text} Real images: {floor['source']}, {floor['runs']} x {floor['samples']:,} against {floor['reference']:,}."


def _found(find: Find, scores: Record) -> float | None:
    """Return a number of ``scores``; None where they lack it."""
    try:
        value = find(scores)
    except (KeyError, TypeError):
        return None
    return float(value) if is_number(value) else None


def _number(value: Any) -> float:
    return float(value) if is_number(value) else float("nan")
