"""Scores of runs over training, as a table and a figure: those of docs/msn.md.

    python docs/msn/curves.py docs/msn RUN [RUN ...]

Runs are named FORM_sSEED. scores.csv gets one line for each score; curves.png shows the mean of each form over its seeds, as far
as all were trained, and every seed as a thin line, over generator updates and over time in units of one SN step (COST below,
docs/msn.md).
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from gan.runs import scores

LABELS = {
    "sn": "SN",
    "q4": "MSN in all layers, joint_quarter",
    "q4rel": "MSN as released, joint_quarter",
    "msn_apart": "MSN in all layers, separate",
}
COST = {"sn": 1.0, "q4": 1.224, "q4rel": 1.126, "msn_apart": 1.213}  # time of a step in bf16, half the channels, over SN's


def main(out: Path, runs: list[Path]) -> None:
    """Write scores.csv and curves.png into ``out``."""
    curves: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(dict)
    with (out / "scores.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", "seed", "step", "distance", "precision", "recall"])
        for run in runs:
            form, seed = run.name.rsplit("_s", 1)
            for record in scores.read(run):
                found = record["scores"]
                pooled = found["pooled"]
                row = [found["fid"]["mean"], pooled["precision"], pooled["recall"]]
                table.writerow([form, seed, record["step"], *(f"{value:.4g}" for value in row)])
                curves[form].setdefault(int(seed), []).append((record["step"], row[0]))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for (form, label), colour in zip(LABELS.items(), plt.colormaps["tab10"].colors, strict=False):
        by_step: dict[int, list[float]] = defaultdict(list)
        for curve in curves[form].values():
            for step, distance in curve:
                by_step[step].append(distance)
        for axis, scale in zip(axes, (1.0, COST[form]), strict=True):
            for curve in curves[form].values():
                axis.plot([step * scale for step, _ in curve], [d for _, d in curve], color=colour, alpha=0.6, linewidth=0.8)
            steps = sorted(step for step in by_step if step and len(by_step[step]) == len(curves[form]))
            means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
            axis.plot([step * scale for step in steps], means, color=colour, label=label)
    for axis, title in zip(axes, ("generator updates", "time, in updates of SN"), strict=True):
        axis.set(xlabel=title, yscale="log", xlim=(0, None))
        axis.set_yticks([30, 50, 70, 100, 150, 200, 300], [30, 50, 70, 100, 150, 200, 300])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Frechet distance (quick, efficientnet-lite0)")
    axes[1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
