"""The contents of Table II: headings, cells, and what a reader must know about them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.comparison_keys import distance_label, inception_score_label
from eval.differences import Difference
from eval.formatting import sizes, sizes_beyond_floor
from eval.protocols import PROTOCOLS
from eval.table2_data import Table, Table2Row
from eval.table2_differences import baseline, describe, distance_difference, mark
from gan.utils.tables import csv_text, format_mean_std

# Table II of Subramanian & Chong 2019: IS, its deviation, FID.
PUBLISHED = {
    "Real data": (11.24, 0.12, 7.8),
    "WGAN-GP (with BN)": (6.42, 0.10, 41.3),
    "SNGAN": (7.42, 0.08, 29.3),
    "MSNGAN": (7.39, 0.07, 29.8),
}
UP, DOWN = " ↑", " ↓"  # which way is better
METRICS = {  # digits shown, by name; what is not a score itself is an entry of its "pooled"
    "inception_score": 2, "fid": 2, "fid_pooled": 2, "fid_infinity": 2, "kid": 5, "precision": 3, "recall": 3,
    "density": 3, "coverage": 3,
}  # fmt: skip
Entry = dict[str, Any] | None  # "mean" and "std"
Cells = tuple[list[str], list[list[str]]]  # headings and rows


@dataclass(frozen=True)
class Line:
    """The scores of a configuration, or of the real data, under one protocol."""

    label: str
    entries: list[Entry]  # in the order of METRICS
    trainings: int | None  # None: real data
    scored: str  # what was scored
    against: Difference | None = None  # of the distance, to the row that the others are compared with


def lines(table: Table, protocol: str) -> list[Line]:
    """Return the real data and each configuration that has scores under ``protocol``."""
    found = []
    if floor := table.records[protocol]["floor"]:
        scored = sizes(floor["runs"], floor["samples"], floor["reference"])
        if more := sizes_beyond_floor(table.records[protocol]):
            scored += f" (the models: {more})"
        found.append(Line("Real data", [_entry(floor, metric) for metric in METRICS], None, scored))
    for row in table.rows:
        if scores := [run.records[protocol]["scores"] for run in row.runs if protocol in run.records]:
            entries = [_over_trainings([_entry(own, metric) for own in scores]) for metric in METRICS]
            against = distance_difference(table, row, protocol)
            found.append(Line(row.label, entries, len(scores), _trainings(row, protocol), against))
    return found


def _entry(scores: dict[str, Any], metric: str) -> Entry:
    if metric in ("inception_score", "fid", "kid"):
        entry: Entry = scores[metric]
        return entry
    value = scores["pooled"].get("fid" if metric == "fid_pooled" else metric)  # older scores have no density
    return None if value is None else {"mean": value, "std": None}


def _over_trainings(entries: list[Entry]) -> Entry:
    """Return the entry of a single training, with its deviation over samplings; of several the mean, deviation with ddof=1.

    None where one training lacks it: a mean over fewer would stand in a row that names all.
    """
    known = [entry for entry in entries if entry is not None]
    if len(known) < len(entries):
        return None
    if len(known) == 1:
        return known[0]
    means = [entry["mean"] for entry in known]
    return {"mean": float(np.mean(means)), "std": float(np.std(means, ddof=1))}


def _trainings(row: Table2Row, protocol: str) -> str:
    """Return what was scored: how many trainings, of how many steps and minutes."""
    runs = sorted((run for run in row.runs if protocol in run.records), key=lambda run: run.seed)
    reached = [run.records[protocol]["step"] for run in runs]
    steps = " / ".join(f"{step:,}" for step in sorted(set(reached)))
    seeds = ", ".join(str(run.seed) for run in runs)
    text = f"{len(runs)} trainings (seeds {seeds})" if len(runs) > 1 else f"1 training (seed {seeds})"
    minutes = [m for run, step in zip(runs, reached, strict=True) if (m := run.minutes(step)) is not None]
    return f"{text}, {steps} steps" + (f", {np.mean(minutes):.0f} min" if minutes else "")


def overview(table: Table) -> Cells:
    """Return Table II: a row a model; published scores, then IS and FID under each protocol."""
    score, distance = (name(table.extractor, short=True) for name in (inception_score_label, distance_label))
    head = ["Model", *(["published IS" + UP, "published FID" + DOWN] if table.published else [])]
    for protocol in table.records:
        head += [f"{protocol}: {score}{UP}", f"{protocol}: {distance}{DOWN}"]
    found = {protocol: {line.label: line for line in lines(table, protocol)} for protocol in table.records}
    labels = ["Real data"] if any("Real data" in own for own in found.values()) else []
    body = []
    for label in [*labels, *(row.label for row in table.rows)]:
        cells = [label]
        if table.published:
            published = PUBLISHED.get(label)
            cells += [f"{published[0]:.2f} ± {published[1]:.2f}", f"{published[2]:.1f}"] if published else ["-", "-"]
        own = [found[protocol].get(label) for protocol in table.records]
        for line in own:
            cells += [format_mean_std(entry) for entry in line.entries[:2]] if line else ["-", "-"]
            if line and (verdict := mark(line.against)):
                cells[-1] += f" ({verdict})"
        trained = {p: line.scored for p, line in zip(table.records, own, strict=True) if line and line.trainings is not None}
        alike = len(set(trained.values())) <= 1
        told = list(trained.values())[:1] if alike else [f"{protocol}: {scored}" for protocol, scored in trained.items()]
        body.append([*cells, "; ".join(told) or "-"])
    return [*head, "Trained"], body


def details(table: Table, protocol: str) -> Cells:
    """Return every score under one protocol, a row a model."""
    distance, score = distance_label(table.extractor, short=True), inception_score_label(table.extractor, short=True)
    names = [
        score + UP, distance + DOWN, f"{distance}, all runs' images{DOWN}", f"{distance}, extrapolated{DOWN}", "KID" + DOWN,
        "precision" + UP, "recall" + UP, "density" + UP, "coverage" + UP,
    ]  # fmt: skip
    body = [
        [line.label, *map(format_mean_std, line.entries, METRICS.values()), describe(line.against), line.scored]
        for line in lines(table, protocol)
    ]
    return ["Model", *names, f"{distance} less that of {baseline(table).label}", "Scored"], body


def comma_separated(table: Table) -> str:
    """Return the table as CSV: a line a model and protocol, in full precision."""
    names = [name for metric in METRICS for name in (metric, f"{metric}_std")]
    rows: list[list[object]] = []
    for protocol in table.records:
        for line in lines(table, protocol):
            numbers = [number for e in line.entries for number in ((e["mean"], e.get("std")) if e else (None, None))]
            compared: list[object] = [None, None, None]
            if line.against is not None:
                compared = [line.against.difference, *(line.against.interval or (None, None))]
            rows.append([line.label, protocol, table.extractor["extractor"], *numbers, line.trainings, line.scored, *compared])
    differing = ["fid_difference", "fid_difference_low", "fid_difference_high"]  # to the baseline, 95% interval
    return csv_text(["model", "protocol", "extractor", *names, "trainings", "scored", *differing], rows)


def remarks(table: Table) -> list[str]:
    """Return the sentences without which the numbers cannot be read."""
    if table.published:
        published = (
            "Of the published rows, Real data and SNGAN are those of Miyato et al. 2018, who scored 10 x 5,000 images (IS)"
            " and 5,000 against 10,000 (FID), not 5 x 2,000: compare them with the sngan columns."
        )
    else:
        published = (
            "The paper's numbers are left out: they hold for CIFAR-10 under the Inception network of the literature;"
            f" these were made by {table.extractor['extractor']} on the data named below. They compare with each other alone."
        )
    bias = (
        "A Frechet distance of few images is biased upwards, so numbers of two protocols do not compare; Real data, scored"
        " as if generated, shows what a perfect generator would get at its own sizes."
    )
    floors = [
        f"{protocol}: Real data was scored with fewer images than the models, which makes its numbers less good than they would"
        f" be at the models' sizes, {more}."
        for protocol, record in table.records.items()
        if (more := sizes_beyond_floor(record))
    ]
    deviations = [_deviation(table, protocol) for protocol in table.records]
    return [*deviations, *_differences(table), published, _weights(table), bias, *floors, *table.notes]


def _differences(table: Table) -> list[str]:
    """Return how rows are compared, where there are several."""
    if len(table.rows) < 2:
        return []
    return [
        f"Each row's distance is compared with that of {baseline(table).label}, where both have at least two training seeds"
        " and were trained on the same images: better or worse where the 95% interval of the difference (Welch's t over seeds;"
        " under a protocol of several runs each side's variance is at least that of sampling) excludes 0, else no verdict. The"
        " intervals are in the protocols' tables."
    ]


def _weights(table: Table) -> str:
    """Return which weights were scored."""
    averaged = next(iter(table.records.values()))["provenance"]["weights"] == "ema"
    if averaged:
        return (
            "The averaged generator was scored (a moving average of G's weights); the authors' release scores the last weights."
        )
    return "The last weights of G were scored, as in the authors' release."


def _deviation(table: Table, protocol: str) -> str:
    """Return what the deviations of a protocol are of."""
    recipe, found = PROTOCOLS[protocol], lines(table, protocol)
    several = [line.label for line in found if line.trainings is not None and line.trainings > 1]
    single = [line.label for line in found if line.label not in several]
    if recipe.runs > 1:
        over = f"{recipe.runs} runs of one generator"
    elif recipe.splits > 1:
        over = f"{recipe.splits} splits of one generator's images (IS alone)"
    else:
        over = "nothing, it is a single run"
    parts = [f"over {over}, KID's over subsets, ddof=0 ({', '.join(single)})"] if single else []
    parts += [f"over trainings with different seeds, ddof=1 ({', '.join(several)})"] if several else []
    return f"{protocol}: ± is the deviation " + "; ".join(parts) + "."
