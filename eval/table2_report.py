"""Table II as Markdown, CSV and one HTML page that needs nothing beside it."""

import base64
import csv
import io
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from eval.comparison_keys import distance_label, inception_score_label
from eval.formatting import format_mean_std
from eval.protocols import PROTOCOLS
from eval.table2_curves import distances
from eval.table2_data import RunScores, Table, Table2Row
from gan.utils.files import write_atomically

# Table II of Subramanian & Chong 2019: IS, its deviation, FID.
PUBLISHED = {
    "Real data": (11.24, 0.12, 7.8),
    "WGAN-GP (with BN)": (6.42, 0.10, 41.3),
    "SNGAN": (7.42, 0.08, 29.3),
    "MSNGAN": (7.39, 0.07, 29.8),
}
UP, DOWN = " ↑", " ↓"  # which way is better
Entry = dict[str, Any] | None
Pick = Callable[[dict[str, Any]], Entry]


def _name(table: Table) -> str:
    return str(table.extractor["extractor"])


def _mean_of(name: str) -> Pick:
    return lambda scores: scores[name]


def _pooled(name: str) -> Pick:
    def pick(scores: dict[str, Any]) -> Entry:
        value = scores["pooled"][name]
        return None if value is None else {"mean": value, "std": None}

    return pick


def _measures(extractor: dict[str, Any]) -> list[tuple[str, str, Pick, int]]:
    """Key, heading, where it is in a record's scores, digits."""
    distance = distance_label(extractor, short=True)
    return [
        ("inception_score", inception_score_label(extractor, short=True) + UP, _mean_of("inception_score"), 2),
        ("fid", distance + DOWN, _mean_of("fid"), 2),
        ("fid_pooled", f"{distance}, all runs' images{DOWN}", _pooled("fid"), 2),
        ("fid_infinity", f"{distance}, extrapolated{DOWN}", _pooled("fid_infinity"), 2),
        ("kid", "KID" + DOWN, _mean_of("kid"), 5),
        ("precision", "precision" + UP, _pooled("precision"), 3),
        ("recall", "recall" + UP, _pooled("recall"), 3),
    ]


def _cell(row: Table2Row, protocol: str, pick: Pick) -> Entry:
    """A row's value. Of one training: mean and deviation over its samplings; of several: over trainings, ddof=1."""
    entries = [pick(run.records[protocol]["scores"]) for run in row.runs if protocol in run.records]
    known = [entry for entry in entries if entry is not None]
    if len(known) <= 1:
        return known[0] if known else None
    means = [entry["mean"] for entry in known]
    return {"mean": float(np.mean(means)), "std": float(np.std(means, ddof=1))}


def _lines(table: Table, protocol: str) -> list[tuple[str, list[Entry], str]]:
    """Label, values and what was scored, of the real data and each row, under one protocol."""
    measures = _measures(table.extractor)
    floor = table.floors[protocol]
    lines = []
    if floor is not None:
        what = f"{floor['runs']} x {floor['samples']:,} against {floor['reference']:,}"
        lines.append(("Real data", [pick(floor) for _, _, pick, _ in measures], what))
    for row in table.rows:
        if any(protocol in run.records for run in row.runs):
            lines.append((row.label, [_cell(row, protocol, pick) for _, _, pick, _ in measures], _trainings(row, protocol)))
    return lines


def _trainings(row: Table2Row, protocol: str) -> str:
    """What was scored: how many trainings, of how many steps and minutes."""
    runs = sorted((run for run in row.runs if protocol in run.records), key=lambda run: run.seed)
    steps = " / ".join(f"{step:,}" for step in sorted({run.records[protocol]["step"] for run in runs}))
    seeds = ", ".join(str(run.seed) for run in runs)
    text = f"{len(runs)} trainings (seeds {seeds})" if len(runs) > 1 else f"1 training (seed {seeds})"
    minutes = [m for run in runs if (m := run.minutes[protocol]) is not None]
    return f"{text}, {steps} steps" + (f", {np.mean(minutes):.0f} min" if minutes else "")


def _deviation(table: Table, protocol: str) -> str:
    """What the deviations of a protocol are of."""
    recipe = PROTOCOLS[protocol]
    several = [row.label for row in table.rows if sum(protocol in run.records for run in row.runs) > 1]
    single = [row.label for row in table.rows if sum(protocol in run.records for run in row.runs) == 1]
    if table.floors[protocol] is not None:
        single.insert(0, "Real data")
    over = f"{recipe.runs} runs of one generator"
    if recipe.runs == 1:
        over = (
            f"{recipe.splits} splits of one generator's images (IS alone)" if recipe.splits > 1 else "nothing, it is a single run"
        )
    parts = []
    if single:
        parts.append(f"over {over}, KID's over subsets, ddof=0 ({', '.join(single)})")
    if several:
        parts.append(f"over trainings with different seeds, ddof=1 ({', '.join(several)})")
    return f"{protocol}: ± is the deviation " + "; ".join(parts) + "."


def _remarks(table: Table) -> list[str]:
    remarks = [_deviation(table, protocol) for protocol in table.columns]
    if not table.published:
        remarks.append(
            "The paper's numbers are left out: they hold for CIFAR-10 under the Inception network of the literature;"
            f" these were made by {_name(table)} on the data named below. They compare with each other alone."
        )
    else:
        remarks.append(
            "Of the published rows, Real data and SNGAN are those of Miyato et al. 2018, who scored 10 x 5,000 images (IS)"
            " and 5,000 against 10,000 (FID), not 5 x 2,000: compare them with the sngan columns."
        )
    remarks.append(
        "A Frechet distance of few images is biased upwards, so numbers of two protocols do not compare; Real data, scored"
        " as if generated, shows what a perfect generator would get at the sizes in its last column (fewer images than the"
        " others had: less good)."
    )
    return remarks + table.notes


def _overview(table: Table) -> tuple[list[str], list[list[str]]]:
    """Table II: a line a model; published, then IS and FID under each protocol."""
    distance, score = (name(table.extractor, short=True) for name in (distance_label, inception_score_label))
    heads = ["Model"]
    if table.published:
        heads += ["published IS" + UP, "published FID" + DOWN]
    for protocol in table.columns:
        heads += [f"{protocol}: {score}{UP}", f"{protocol}: {distance}{DOWN}"]
    heads.append("Trained")
    labels = [label for label in ("Real data",) if any(table.floors.values())] + [row.label for row in table.rows]
    found = {protocol: {label: values for label, values, _ in _lines(table, protocol)} for protocol in table.columns}
    body = []
    for label in labels:
        cells = [label]
        if table.published:
            known = PUBLISHED.get(label)
            cells += [f"{known[0]:.2f} ± {known[1]:.2f}", f"{known[2]:.1f}"] if known else ["-", "-"]
        for protocol in table.columns:
            values = found[protocol].get(label)
            cells += [format_mean_std(values[0]), format_mean_std(values[1])] if values else ["-", "-"]
        scored = [(row, p) for row in table.rows for p in table.columns if row.label == label and label in found[p]]
        cells.append(_trainings(*scored[0]) if scored else "-")
        body.append(cells)
    return heads, body


def _details(table: Table, protocol: str) -> tuple[list[str], list[list[str]]]:
    """Headings and a line a model: every score under one protocol."""
    measures = _measures(table.extractor)
    body = [
        [label, *(format_mean_std(v, m[3]) for v, m in zip(values, measures, strict=True)), what]
        for label, values, what in _lines(table, protocol)
    ]
    return ["Model", *(m[1] for m in measures), "Scored"], body


def markdown(table: Table, curves: bool = False) -> str:
    """The table, then every score of each protocol, then what must be known to read them."""

    def grid(heads: list[str], body: list[list[str]]) -> list[str]:
        rule = "|" + "---|" * len(heads)
        return ["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(cells) + " |" for cells in body), ""]

    lines = ["# Table II", "", f"Extractor: {_name(table)}.", "", *grid(*_overview(table))]
    lines += [f"{remark}\n" for remark in _remarks(table)]
    if curves:
        lines += ["![Frechet distance along training](table2_curves.png)", ""]
    for protocol in table.columns:
        lines += [f"## Protocol {protocol}", "", f"{PROTOCOLS[protocol].purpose}.", ""]
        lines += grid(*_details(table, protocol))
    lines += ["## Provenance", ""]
    for protocol in table.columns:
        lines += ["```json", json.dumps(_common(table, protocol), indent=1, sort_keys=True), "```", ""]
    return "\n".join(lines)


def _common(table: Table, protocol: str) -> dict[str, Any]:
    """What all scores of a protocol have in common."""
    provenance = table.provenance[protocol]
    own = ("generated", "step")  # of each generator alone
    return {key: value for key, value in provenance.items() if key not in own}


def comma_separated(table: Table) -> str:
    """One line a model and protocol, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measures = _measures(table.extractor)
    names = [name for key, *_ in measures for name in (key, f"{key}_std")]
    writer.writerow(["model", "protocol", "extractor", *names, "trainings", "scored"])
    for protocol in table.columns:
        counts = {row.label: sum(protocol in run.records for run in row.runs) for row in table.rows}
        for label, values, what in _lines(table, protocol):
            cells = [cell for v in values for cell in ((v["mean"], v.get("std")) if v else (None, None))]
            writer.writerow([label, protocol, _name(table), *cells, counts.get(label, ""), what])
    return out.getvalue()


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td:last-child, th:last-child { text-align: left; }
td:last-child { white-space: normal; min-width: 10rem; }
th { white-space: normal; }
th { font-weight: 600; background: var(--soft); }
.wide { overflow-x: auto; }
.grids { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 100%; } figcaption { font-size: .85rem; opacity: .8; }
img { max-width: 100%; height: auto; background: #fff; } img.grid { image-rendering: pixelated; width: 17rem; }
pre { overflow-x: auto; background: var(--soft); padding: 1rem; font-size: .8rem; }
summary { cursor: pointer; }
"""


def _html_table(heads: list[str], body: list[list[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(text)}</th>" for text in heads)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in body)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _picture(content: bytes, caption: str, kind: str = "grid") -> str:
    data = base64.b64encode(content).decode()
    return (
        f"<figure><img class='{kind}' alt='{escape(caption, quote=True)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def page(table: Table, curves: bytes | None) -> str:
    """One HTML page with its pictures inside."""
    parts = [f"<h1>Table II, by {escape(_name(table))}</h1>", _html_table(*_overview(table))]
    parts += [f"<p>{escape(remark)}</p>" for remark in _remarks(table)]
    if curves is not None:
        parts += [
            "<h2>Along training</h2>",
            _picture(curves, "Frechet distance over generator updates; lower is better", "curve"),
        ]
    parts.append("<h2>Samples</h2><p>From one fixed noise each, none chosen.</p>")
    if table.real_grid is not None:
        parts.append("<h3>Real data</h3>" + _picture(table.real_grid, "images of the training set, evenly spaced"))
    for row in table.rows:
        parts.append(f"<h3>{escape(row.label)}</h3><div class='grids'>{''.join(_grids(row, run) for run in row.runs)}</div>")
    for protocol in table.columns:
        parts += [
            f"<h2>Protocol {protocol}</h2><p>{escape(PROTOCOLS[protocol].purpose)}.</p>",
            _html_table(*_details(table, protocol)),
            "<details><summary>The protocol and everything that these scores depend on</summary><pre>"
            + escape(json.dumps(_common(table, protocol), indent=1, sort_keys=True))
            + "</pre></details>",
        ]
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Table II, by {escape(_name(table))}</title><style>{_STYLE}</style>"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _grids(row: Table2Row, run: RunScores) -> str:
    seed = f", seed {run.seed}" if len(row.runs) > 1 else ""
    return "".join(_picture(content, f"step {step:,}{seed}") for step, content in run.grids)


def write_report(table: Table, out: Path) -> None:
    """Writes table2.md, table2_curves.png, table2.csv and table2.html into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    curves = distances(table)
    if curves is not None:
        write_atomically(out / "table2_curves.png", curves)
    for name, text in (
        ("md", markdown(table, curves is not None)),
        ("csv", comma_separated(table)),
        ("html", page(table, curves)),
    ):
        write_atomically(out / f"table2.{name}", text.encode())
