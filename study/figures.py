"""Draw Figures 1 to 6 of the paper from the records of runs: which runs each shows, the files, and Figure 2 itself."""

import statistics
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gan.runs.grouping import differing_settings
from gan.utils.errors import UserError
from gan.utils.files import make_folder, write_atomically
from gan.utils.safe_reading import without_mathematics
from study.config import MODEL_NAMES, NORM_NAMES
from study.panels import NORM_COLOURS, STYLE, Panel, column, grid
from study.probe_figures import PROBE_FIGURES, probes_csv
from study.results import ClassifierRun, ComparableRuns, comparable_runs
from study.tables import budget, data_name

ByNorm = dict[str, ClassifierRun]  # one run a norm


def write_figures(
    results: Sequence[ClassifierRun], out: Path, rate: float | None = None, *, together: bool = False
) -> list[Path]:
    """Write those of figures 1 to 6 that ``results`` have records for into ``out``, as PDF and PNG. Return the files.

    Figure 2 shows all models; the others show one model each, named in the file name, and so does probes_*.csv, with the
    numbers behind them. ``together``: one figure, on the same axes, shows all runs of a model on the same data, such as those
    as written and as released. Only runs of learning rate ``rate`` are shown; None selects, for each model, the paper's 0.001
    or else the largest rate. Diverged runs are left out.

    Raises UserError when there is nothing to draw.
    """
    chosen = _of_one_rate([result for result in results if result.failure is None], rate)
    make_folder(out)
    files: list[Path] = []

    def save(name: str, content: bytes) -> None:
        write_atomically(out / name, content)
        files.append(out / name)

    def draw(name: str, figure: Figure) -> None:
        for ending in ("pdf", "png"):
            content = BytesIO()
            # Without a date, the same numbers give the same file.
            figure.savefig(content, format=ending, dpi=160, metadata={"CreationDate": None} if ending == "pdf" else None)
            save(f"{name}.{ending}", content.getvalue())

    with matplotlib.rc_context(STYLE):
        tested = [
            (group, rate) for group, rate in chosen if any(run.tests for runs in group.of_rate(rate).values() for run in runs)
        ]
        if tested:
            draw("figure2", _accuracy(tested))
        for key, panel in _panels(chosen, together=together).items():
            save(f"probes_{key}.csv", probes_csv(panel).encode())
            for number, drawn in PROBE_FIGURES.items():
                draw(f"figure{number}_{key}", drawn(panel))
    if not files:
        raise UserError("the runs have recorded neither tests nor probes yet. Train them on, with probes.every above 0.")
    return files


def _of_one_rate(results: Sequence[ClassifierRun], rate: float | None) -> list[tuple[ComparableRuns, float]]:
    """Return each model's runs with the learning rate to show."""
    found = comparable_runs(results)
    rates = [rate if rate is not None else 0.001 if 0.001 in group.rates else max(group.rates) for group in found]
    chosen = [(group, own) for group, own in zip(found, rates, strict=True) if own in group.rates]
    if found and not chosen:
        there = ", ".join(f"{own:g}" for own in sorted(set().union(*(group.rates for group in found))))
        raise UserError(f"--rate {rate:g}: no run has this learning rate. There are {there}.")
    return chosen


def _panels(groups: Sequence[tuple[ComparableRuns, float]], *, together: bool) -> dict[str, Panel]:
    """Return the columns of each figure of probes, by its file name: one run a norm, of the first seed that all norms share.

    The BatchNorm run is shown with both the full and the published DenseNet-BC, which are the same network under BatchNorm.
    Columns of one figure whose runs differ in settings name them.
    """
    found: dict[str, ByNorm] = {}
    settings: dict[str, dict[str, Any]] = {}  # by the key of ``found``
    models: dict[str, list[str]] = {}  # keys of ``found`` by model and data
    for group, rate in groups:
        probed = {norm: own for norm, runs in group.of_rate(rate).items() if (own := [run for run in runs if run.probes])}
        if not probed:
            continue
        common = set.intersection(*({run.config.seed for run in runs} for runs in probed.values()))
        by_norm = {norm: next((r for r in runs if r.config.seed in common), runs[0]) for norm, runs in probed.items()}
        model = group.first.config.model
        data = "".join(c if c.isalnum() else "_" for c in data_name(group.first).removesuffix(".zip"))
        name = f"{model.name}{'' if model.variant == 'full' else f'_{model.variant}'}_{data}"
        number = sum(key == name or key.startswith(f"{name}_") for key in found)
        key = f"{name}_{number + 1}" if number else name
        found[key], settings[key] = by_norm, {**group.settings, "optimizer.lr": rate}
        models.setdefault(f"{model.name}_{data}", []).append(key)
    if together:
        return {
            model: [
                column(run, name_variant=len(keys) > 1, apart=_told_apart(settings[key], [settings[other] for other in keys]))
                for key in keys
                for run in found[key].values()
            ]
            for model, keys in models.items()
        }
    for key, by_norm in found.items():
        full = key.replace("_published_", "_", 1)
        same = full in found and not _told_apart(settings[key], [settings[full]])
        if same and "batch" in found[full] and "batch" not in by_norm:
            found[key] = {"batch": found[full]["batch"], **by_norm}
    return {key: [column(run, name_variant=False) for run in by_norm.values()] for key, by_norm in found.items()}


def _told_apart(settings: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """Return the settings, beside the variant and the images, that ``others`` have otherwise; "" where there are none."""
    differing = differing_settings(settings, others)
    return ", ".join(f"{key}={value}" for key, value in differing.items() if key not in ("model.variant", "images"))


def _accuracy(groups: Sequence[tuple[ComparableRuns, float]]) -> Figure:
    """Figure 2: test accuracy by epoch, a panel a model, a line a norm, a band of one deviation over seeds (ddof 1)."""
    figure, axes = grid(1, len(groups))
    for axis, (group, rate) in zip(axes[0], groups, strict=True):
        for norm, trained in group.of_rate(rate).items():
            runs = [run for run in trained if run.tests]  # a sweep may have begun the others just now
            if not runs:
                continue
            epochs, means, spreads = _over_seeds(runs)
            label = f"{NORM_NAMES[norm]} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            axis.plot(epochs, means, color=NORM_COLOURS[norm], label=label, marker="o", markersize=3)
            axis.fill_between(epochs, means - spreads, means + spreads, color=NORM_COLOURS[norm], alpha=0.15, linewidth=0)
        told = textwrap.fill(
            f"{without_mathematics(data_name(group.first))}, lr {rate:g}: {budget(group, [own for own, _ in groups])}", 48
        )
        axis.set_title(f"{MODEL_NAMES[group.first.model]}\n{told}", fontsize=8)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("test accuracy (%)")
    return figure


def _over_seeds(results: Sequence[ClassifierRun]) -> tuple[Any, Any, Any]:
    """Return the epochs after which all runs were tested, their mean accuracies in percent and the deviations."""
    found: dict[float, list[float]] = {}
    for result in results:
        for record in result.tests:
            found.setdefault(record["epoch"], []).append(100 * record["test_accuracy"])
    epochs = sorted(epoch for epoch, values in found.items() if len(values) == len(results))
    spreads = [statistics.stdev(found[epoch]) if len(results) > 1 else 0.0 for epoch in epochs]
    return np.array(epochs), np.array([statistics.fmean(found[epoch]) for epoch in epochs]), np.array(spreads)
