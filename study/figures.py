"""Draw Figures 1 to 6 of the paper from the records of runs."""

import statistics
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gan.utils.errors import UserError
from gan.utils.files import make_folder, write_atomically
from study.config import MODEL_NAMES, NORM_NAMES
from study.probes import THRESHOLDS
from study.results import ClassifierRun, ComparableRuns, Record, comparable_runs
from study.tables import data_name

STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "figure.constrained_layout.use": True, "lines.linewidth": 1.2, "pdf.fonttype": 42,
}  # fmt: skip
NORM_COLOURS = {
    "none": "#777777", "batch": "#1f77b4", "spectral": "#d62728", "mean_spectral": "#2ca02c",
    "spectral_projected": "#ff7f0e", "mean_spectral_projected": "#17becf",
}  # fmt: skip
HISTOGRAM_LAYERS = (45, 76)  # layers of DenseNet-BC in the paper's Figure 5, which counts them from 0 (see study/probes.py)
Panel = dict[str, ClassifierRun]  # one run a norm
WIDTH = 3.1  # of a panel, in inches


def write_figures(results: Sequence[ClassifierRun], out: Path, rate: float | None = None) -> list[Path]:
    """Write those of figures 1 to 6 that ``results`` have records for into ``out``, as PDF and PNG. Return the files.

    Figure 2 shows all models; the others show one model each, named in the file name. Only runs of learning rate ``rate`` are
    shown; None selects, for each model, the paper's 0.001 or else the largest rate. Diverged runs are left out.

    Raises UserError when there is nothing to draw.
    """
    chosen = _of_one_rate([result for result in results if result.failure is None], rate)
    make_folder(out)
    files: list[Path] = []

    def save(name: str, figure: Figure) -> None:
        for ending in ("pdf", "png"):
            content = BytesIO()
            # Without a date, the same numbers give the same file.
            figure.savefig(content, format=ending, dpi=160, metadata={"CreationDate": None} if ending == "pdf" else None)
            write_atomically(out / f"{name}.{ending}", content.getvalue())
            files.append(out / f"{name}.{ending}")

    with matplotlib.rc_context(STYLE):
        tested = [
            (group, rate) for group, rate in chosen if any(run.tests for runs in group.of_rate(rate).values() for run in runs)
        ]
        if tested:
            save("figure2", _accuracy(tested))
        for key, panel in _panels(chosen).items():
            for number, draw in PROBE_FIGURES.items():
                save(f"figure{number}_{key}", draw(panel))
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


def _panels(groups: Sequence[tuple[ComparableRuns, float]]) -> dict[str, Panel]:
    """Return one probed run a norm, of the first seed that all norms share, by the panel's file name.

    The BatchNorm run is shown with both variants of DenseNet-BC, which are the same network under BatchNorm.
    """
    found: dict[str, Panel] = {}
    for group, rate in groups:
        probed = {norm: own for norm, runs in group.of_rate(rate).items() if (own := [run for run in runs if run.probes])}
        if not probed:
            continue
        common = set.intersection(*({run.config.seed for run in runs} for runs in probed.values()))
        panel = {norm: next((r for r in runs if r.config.seed in common), runs[0]) for norm, runs in probed.items()}
        model = group.first.config.model
        data = "".join(c if c.isalnum() else "_" for c in data_name(group.first).removesuffix(".zip"))
        name = f"{model.name}{'' if model.variant == 'full' else f'_{model.variant}'}_{data}"
        number = sum(key == name or key.startswith(f"{name}_") for key in found)
        found[f"{name}_{number + 1}" if number else name] = panel
    for key, panel in found.items():
        full = found.get(key.replace("_published_", "_", 1), {})
        if "batch" in full and "batch" not in panel:
            found[key] = {"batch": full["batch"], **panel}
    return found


def _grid(rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH * columns + 0.9, 2.4 * rows + 0.3))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _by_norm(panel: Panel, labels: Sequence[str]) -> tuple[Figure, Any]:
    """Return a figure over training steps with a column a norm and a row for each of ``labels``, and its axes."""
    figure, axes = _grid(len(labels), len(panel), sharex="col", sharey="row")
    for column, norm in enumerate(panel):
        axes[0][column].set_title(NORM_NAMES[norm])
        axes[-1][column].set_xlabel("training step")
    for row, label in enumerate(labels):
        axes[row][0].set_ylabel(label)
    return figure, axes


def _by_layer(panel: Panel, values: dict[str, Callable[[Record], float]]) -> tuple[Figure, Any]:
    """Draw a column of panels a norm, a row for each of the labelled ``values`` and a line a layer."""
    figure, axes = _by_norm(panel, list(values))
    for column, result in enumerate(panel.values()):
        colours = matplotlib.colormaps["viridis"](0.95 * np.arange(len(result.layers)) / max(len(result.layers) - 1, 1))
        for layer, colour in zip(result.layers, colours, strict=True):
            records = result.probed(layer)
            for row, value in enumerate(values.values()):
                axes[row][column].plot(*_series(records, value), color=colour, label=str(layer))
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right center", title="layer", fontsize=8)
    return figure, axes


def _series(records: Sequence[Record], value: Callable[[Record], float]) -> tuple[list[int], list[float]]:
    return [r["step"] for r in records], [value(r) for r in records]


def _sparsity(panel: Panel) -> Figure:
    """Figure 1: the share of weight gradient entries that are exactly zero (top) and nearly zero (bottom)."""
    threshold = f"{THRESHOLDS[2]:g}"
    figure, axes = _by_layer(
        panel,
        {
            "gradient entries = 0 (%)": lambda r: 100 * r["gradient_zero"],
            f"|entries| < {threshold} (%)": lambda r: 100 * r["gradient_below"][threshold],
        },
    )
    axes[0][0].set_ylim(-0.03, max(1.0, axes[0][0].get_ylim()[1]))  # lines at zero are visible
    return figure


def _accuracy(groups: Sequence[tuple[ComparableRuns, float]]) -> Figure:
    """Figure 2: test accuracy by epoch, a panel a model, a line a norm, a band of one deviation over seeds (ddof 1)."""
    figure, axes = _grid(1, len(groups))
    for axis, (group, rate) in zip(axes[0], groups, strict=True):
        for norm, runs in group.of_rate(rate).items():
            epochs, means, spreads = _over_seeds(runs)
            label = f"{NORM_NAMES[norm]} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            axis.plot(epochs, means, color=NORM_COLOURS[norm], label=label, marker="o", markersize=3)
            axis.fill_between(epochs, means - spreads, means + spreads, color=NORM_COLOURS[norm], alpha=0.15, linewidth=0)
        axis.set_title(f"{MODEL_NAMES[group.first.model]}\n{data_name(group.first)}, lr {rate:g}", fontsize=8)
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


def _bands(panel: Panel) -> Figure:
    """Figure 3: mean and standard deviation of the weights that a layer applies, as a band; a column a norm."""
    layers = sorted({layer for result in panel.values() for layer in result.layers})
    figure, axes = _by_norm(panel, [f"layer {layer}" for layer in layers])
    figure.set_size_inches(WIDTH * len(panel) + 0.5, 1.3 * len(layers) + 0.6)
    for column, (norm, result) in enumerate(panel.items()):
        for row, layer in enumerate(layers):
            axis, records = axes[row][column], result.probed(layer)
            steps = [r["step"] for r in records]
            mean, deviation = (np.array([r[key] for r in records]) for key in ("weight_mean", "weight_std"))
            axis.fill_between(steps, mean - deviation, mean + deviation, color=NORM_COLOURS[norm], alpha=0.25, linewidth=0)
            axis.plot(steps, mean, color=NORM_COLOURS[norm])
    figure.suptitle("weights: mean ± standard deviation", fontsize=9)
    return figure


def _drift(panel: Panel) -> Figure:
    """Figure 4: means of each layer's weights (top, as in the paper's axis) and pre-activations (bottom, as in its text)."""
    return _by_layer(
        panel,
        {
            "mean of weights": lambda r: r["weight_mean"],
            "mean of pre-activations": lambda r: r["preactivation_mean"],
        },
    )[0]


def histogram_layers(probed: Sequence[int]) -> list[int]:
    """Return the layers of Figure 5 among those ``probed`` (ascending), else the first and the last.

    Runs of before, which took the paper's numbers to count from 1, recorded the layer before each.
    """
    wanted = HISTOGRAM_LAYERS if set(HISTOGRAM_LAYERS) & set(probed) else [layer - 1 for layer in HISTOGRAM_LAYERS]
    return [layer for layer in wanted if layer in probed] or [probed[0], probed[-1]]


def _histograms(panel: Panel) -> Figure:
    """Figure 5: densities of the gradients of two layers at the last recorded step."""
    probed = sorted({layer for result in panel.values() for layer in result.layers})
    layers = histogram_layers(probed)
    figure, axes = _grid(len(layers), len(panel))
    for row, layer in enumerate(layers):
        last = {norm: records[-1] for norm, result in panel.items() if (records := result.probed(layer))}
        widest = max(4 * record["gradient_std"] for record in last.values())  # half the axis: four standard deviations
        for axis, norm in zip(axes[row], panel, strict=True):
            title = f"{NORM_NAMES[norm]}, layer {layer}"
            if norm in last:
                _histogram(axis, last[norm], NORM_COLOURS[norm])
                title += f", step {last[norm]['step']}"
            axis.set_xlim(-widest, widest)
            axis.set_title(title, fontsize=8)
        axes[row][0].set_ylabel("density")
    for axis in axes[-1]:
        axis.set_xlabel("gradient")
    return figure


def _histogram(axis: Axes, record: Record, colour: str) -> None:
    counts = np.array(record["gradient_histogram"], dtype=float)
    edge = record["gradient_max"] or 1.0
    edges = np.linspace(-edge, edge, len(counts) + 1)
    axis.stairs(counts / counts.sum() / np.diff(edges), edges, fill=True, color=colour, alpha=0.7)
    axis.text(0.98, 0.92, f"std {record['gradient_std']:.1e}", transform=axis.transAxes, ha="right", fontsize=8)


def _singular_values(panel: Panel) -> Figure:
    """Figure 6: the mean over a layer's kernels of the largest singular value."""
    return _by_layer(panel, {"mean singular value": lambda r: r["singular_kernel_mean"]})[0]


PROBE_FIGURES = {1: _sparsity, 3: _bands, 4: _drift, 5: _histograms, 6: _singular_values}
