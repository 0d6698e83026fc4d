"""Scores of runs over training, as a table and a figure: those of docs/msn.md.

    python docs/msn/curves.py docs/msn [RUN ...]

Runs are named FORM_sSEED. Their scores replace those of the same form and seed in scores.csv, which keeps all others. curves.png
is drawn from it: the mean of each form over its seeds, as far as all were trained, and every seed as a thin line, over generator
updates and over time in units of one SN step (COST below, docs/msn.md).
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from gan.runs import scores

PROTOCOL, EXTRACTOR = "quick", "efficientnet-lite0"
COLUMNS = ["run", "seed", "step", "distance", "precision", "recall"]
LABELS = {
    "sn": "SN",
    "sn_slow_d": "SN, slow D",
    "q4": "MSN in all layers",
    "q4rel": "MSN in the released layers",
    "q4rel_slow_d": "MSN in the released layers, slow D",
    "msn_apart": "MSN in all layers, separate batches",
}
# Time of a step in bf16, half the channels, over SN's
COST = {"sn": 1.0, "sn_slow_d": 1.0, "q4": 1.224, "q4rel": 1.126, "q4rel_slow_d": 1.126, "msn_apart": 1.213}
TICKS = [30, 50, 70, 100, 150, 200, 300]
Row = dict[str, str]


def scores_of(run: Path) -> list[Row]:
    """Return the lines of scores.csv for one run's folder: of its scores under PROTOCOL by EXTRACTOR."""
    form, _, seed = run.name.rpartition("_s")
    if not form or not seed.isdecimal():
        raise SystemExit(f"{run}: expected a run named FORM_sSEED; drawn are the forms {', '.join(LABELS)}")
    rows = []
    for record in scores.read(run):
        found = record["scores"]
        if (record["protocol"], record["provenance"]["extractor"]["extractor"]) != (PROTOCOL, EXTRACTOR):
            continue
        if found["pooled"]["precision"] is None:
            raise SystemExit(f"{run}: scored against statistics, which give no precision and recall")
        values = [found["fid"]["mean"], found["pooled"]["precision"], found["pooled"]["recall"]]
        cells = [form, seed, record["step"], *(f"{value:.4g}" for value in values)]
        rows.append(dict(zip(COLUMNS, map(str, cells), strict=True)))
    return rows


def main(out: Path, runs: list[Path]) -> None:
    """Write scores.csv, with the scores of ``runs``, and curves.png into ``out``."""
    table = out / "scores.csv"
    found = [row for run in runs for row in scores_of(run)]
    replaced = {(row["run"], row["seed"]) for row in found}
    if table.exists():
        with table.open(newline="") as file:
            found = [row for row in csv.DictReader(file) if (row["run"], row["seed"]) not in replaced] + found
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    draw(found, out / "curves.png")


def draw(rows: list[Row], out: Path) -> None:
    """Draw the forms of LABELS into the picture ``out``."""
    curves: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))  # distance by form, seed and step
    for row in rows:
        curves[row["run"]][row["seed"]][int(row["step"])] = float(row["distance"])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for (form, label), colour in zip(LABELS.items(), plt.colormaps["tab10"].colors, strict=False):
        if form not in curves:
            continue
        seeds = list(curves[form].values())
        steps = sorted(step for step in set.intersection(*map(set, seeds)) if step)
        means = [sum(curve[step] for curve in seeds) / len(seeds) for step in steps]
        for axis, scale in zip(axes, (1.0, COST[form]), strict=True):
            for curve in seeds:
                axis.plot([step * scale for step in curve], list(curve.values()), color=colour, alpha=0.6, linewidth=0.8)
            axis.plot([step * scale for step in steps], means, color=colour, label=label)
    for axis, title in zip(axes, ("generator updates", "time, in updates of SN"), strict=True):
        axis.set(xlabel=title, yscale="log", xlim=(0, None))
        axis.set_yticks(TICKS, TICKS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Frechet distance (quick, efficientnet-lite0)")
    axes[1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
