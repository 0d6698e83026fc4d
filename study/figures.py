"""Draw Figures 1 to 6 of the paper from the records of runs."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gan.utils.errors import UserError
from gan.utils.files import make_folder, write_atomically
from study.probes import THRESHOLDS
from study.results import ClassifierRun, ComparableRuns, Record, comparable_runs
from study.tables import MODEL_NAMES, NORM_NAMES, data_name

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "figure.constrained_layout.use": True, "lines.linewidth": 1.2, "pdf.fonttype": 42,
}  # fmt: skip
NORM_COLOURS = {"none": "#777777", "batch": "#1f77b4", "spectral": "#d62728", "mean_spectral": "#2ca02c"}
HISTOGRAM_LAYERS = (44, 75)  # layers of DenseNet-BC in the paper's Figure 5
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
        plt.close(figure)

    with matplotlib.rc_context(STYLE):
        if tested := [group for group in chosen if any(run.tests for runs in group.runs.values() for run in runs)]:
            save("figure2", _accuracy(tested))
        for key, panel in _panels(chosen).items():
            for number, draw in enumerate((_sparsity, None, _bands, _drift, _histograms, _singular_values), 1):
                if draw is not None:
                    save(f"figure{number}_{key}", draw(panel))
    if not files:
        raise UserError("the runs have recorded neither tests nor probes yet. Train them on, with probes.every above 0.")
    return files


@dataclass(frozen=True)
class RunsOfRate:
    """Runs of one model and learning rate that differ only by norm and seed."""

    compared: ComparableRuns
    rate: float

    @property
    def runs(self) -> dict[str, list[ClassifierRun]]:
        """The runs by norm, in the order of NORM_NAMES and seeds."""
        found = self.compared.of_rate(self.rate)
        return {norm: found[norm] for norm in NORM_NAMES if norm in found}


def _of_one_rate(results: Sequence[ClassifierRun], rate: float | None) -> list[RunsOfRate]:
    groups = []
    found = comparable_runs(results)
    for compared in found:
        chosen = rate if rate is not None else 0.001 if 0.001 in compared.rates else max(compared.rates)
        if chosen in compared.rates:
            groups.append(RunsOfRate(compared, chosen))
    if found and not groups:
        there = sorted({own for compared in found for own in compared.rates})
        raise UserError(f"--rate {rate:g}: no run has this learning rate. There are {', '.join(f'{own:g}' for own in there)}.")
    return groups


def _panels(groups: Sequence[RunsOfRate]) -> dict[str, Panel]:
    """Return one probed run a norm, of the first seed that all norms share, by the panel's file name.

    The BatchNorm run is shown with both variants of DenseNet-BC, which are the same network under BatchNorm.
    """
    found: dict[str, Panel] = {}
    for group in groups:
        probed = {norm: [run for run in runs if run.probes] for norm, runs in group.runs.items()}
        probed = {norm: runs for norm, runs in probed.items() if runs}
        if not probed:
            continue
        common = set.intersection(*({run.config.seed for run in runs} for runs in probed.values()))
        panel = {norm: next((r for r in runs if r.config.seed in common), runs[0]) for norm, runs in probed.items()}
        model = group.compared.first.config.model
        name = f"{model.name}{'' if model.variant == 'full' else '_published'}_{_plain(data_name(group.compared.first))}"
        number = sum(key == name or key.startswith(f"{name}_") for key in found)
        found[f"{name}_{number + 1}" if number else name] = panel
    for key, panel in found.items():
        if "_published_" in key and "batch" not in panel:
            full = found.get(key.replace("_published", "", 1), {})
            if "batch" in full:
                found[key] = {"batch": full["batch"], **panel}
    return found


def _plain(name: str) -> str:
    """Return a data set's name as a part of a file name."""
    stem = name.removesuffix(".zip")
    return "".join(c if c.isalnum() else "_" for c in stem)


def _grid(rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH * columns + 0.9, 2.4 * rows + 0.3), squeeze=False, **options)
    return figure, axes


def _by_norm(panel: Panel, values: dict[str, Callable[[Record], float]]) -> tuple[Figure, Any]:
    """Draw a column of panels a norm, a row for each of the labelled ``values`` and a line a layer."""
    figure, axes = _grid(len(values), len(panel), sharex="col", sharey="row")
    for column, (norm, result) in enumerate(panel.items()):
        for row, value in enumerate(values.values()):
            _lines(axes[row][column], result, value)
        axes[0][column].set_title(NORM_NAMES[norm])
        axes[-1][column].set_xlabel("training step")
    for row, label in enumerate(values):
        axes[row][0].set_ylabel(label)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right center", title="layer", fontsize=8)
    return figure, axes


def _lines(axis: Axes, result: ClassifierRun, value: Callable[[Record], float]) -> None:
    for index, layer in enumerate(result.layers):
        records = result.probed(layer)
        colour = matplotlib.colormaps["viridis"](0.95 * index / max(len(result.layers) - 1, 1))
        axis.plot([r["step"] for r in records], [value(r) for r in records], color=colour, label=str(layer))


def _sparsity(panel: Panel) -> Figure:
    """Figure 1: the share of weight gradient entries that are exactly zero (top) and nearly zero (bottom)."""
    threshold = f"{THRESHOLDS[2]:g}"
    figure, axes = _by_norm(
        panel,
        {
            "gradient entries = 0 (%)": lambda r: 100 * r["gradient_zero"],
            f"|entries| < {threshold} (%)": lambda r: 100 * r["gradient_below"][threshold],
        },
    )
    axes[0][0].set_ylim(-0.03, max(1.0, axes[0][0].get_ylim()[1]))  # lines at zero are visible
    return figure


def _accuracy(groups: Sequence[RunsOfRate]) -> Figure:
    """Figure 2: test accuracy by epoch, a panel a model, a line a norm, a band of one deviation over seeds (ddof 1)."""
    figure, axes = _grid(1, len(groups))
    for axis, group in zip(axes[0], groups, strict=True):
        for norm, runs in group.runs.items():
            epochs, means, spreads = _over_seeds(runs)
            label = f"{NORM_NAMES[norm]} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            axis.plot(epochs, means, color=NORM_COLOURS[norm], label=label, marker="o", markersize=3)
            axis.fill_between(epochs, means - spreads, means + spreads, color=NORM_COLOURS[norm], alpha=0.15, linewidth=0)
        first = group.compared.first
        axis.set_title(f"{MODEL_NAMES[first.model]}\n{data_name(first)}, lr {group.rate:g}", fontsize=8)
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
    figure, axes = _grid(len(layers), len(panel), sharex="col", sharey="row")
    figure.set_size_inches(WIDTH * len(panel) + 0.5, 1.3 * len(layers) + 0.6)
    for column, (norm, result) in enumerate(panel.items()):
        for row, layer in enumerate(layers):
            axis, records = axes[row][column], result.probed(layer)
            steps = [r["step"] for r in records]
            mean, deviation = (np.array([r[key] for r in records]) for key in ("weight_mean", "weight_std"))
            axis.fill_between(steps, mean - deviation, mean + deviation, color=NORM_COLOURS[norm], alpha=0.25, linewidth=0)
            axis.plot(steps, mean, color=NORM_COLOURS[norm])
            axes[row][0].set_ylabel(f"layer {layer}")
        axes[0][column].set_title(NORM_NAMES[norm])
        axes[-1][column].set_xlabel("training step")
    figure.suptitle("weights: mean ± standard deviation", fontsize=9)
    return figure


def _drift(panel: Panel) -> Figure:
    """Figure 4: means of each layer's weights (top, as in the paper's axis) and pre-activations (bottom, as in its text)."""
    values: dict[str, Callable[[Record], float]] = {
        "mean of weights": lambda r: r["weight_mean"],
        "mean of pre-activations": lambda r: r["preactivation_mean"],
    }
    return _by_norm(panel, values)[0]


def _histograms(panel: Panel) -> Figure:
    """Figure 5: densities of the gradients of two layers at the last recorded step."""
    probed = sorted({layer for result in panel.values() for layer in result.layers})
    layers = [layer for layer in HISTOGRAM_LAYERS if layer in probed] or [probed[0], probed[-1]]
    figure, axes = _grid(len(layers), len(panel))
    for row, layer in enumerate(layers):
        widest = max((_spread(result, layer) for result in panel.values()), default=1.0)
        for column, (norm, result) in enumerate(panel.items()):
            axis, records = axes[row][column], result.probed(layer)
            if records:
                _histogram(axis, records[-1], NORM_COLOURS[norm])
            axis.set_xlim(-widest, widest)
            axis.set_title(
                f"{NORM_NAMES[norm]}, layer {layer}" + (f", step {records[-1]['step']}" if records else ""), fontsize=8
            )
    for axis in axes[-1]:
        axis.set_xlabel("gradient")
    for row in range(len(layers)):
        axes[row][0].set_ylabel("density")
    return figure


def _spread(result: ClassifierRun, layer: int) -> float:
    """Return half the width of the axis of a layer's gradients: four standard deviations."""
    records = result.probed(layer)
    return 4 * records[-1]["gradient_std"] if records else 0.0


def _histogram(axis: Axes, record: Record, colour: str) -> None:
    counts = np.array(record["gradient_histogram"], dtype=float)
    edge = record["gradient_max"] or 1.0
    edges = np.linspace(-edge, edge, len(counts) + 1)
    axis.stairs(counts / counts.sum() / np.diff(edges), edges, fill=True, color=colour, alpha=0.7)
    axis.text(0.98, 0.92, f"std {record['gradient_std']:.1e}", transform=axis.transAxes, ha="right", fontsize=8)


def _singular_values(panel: Panel) -> Figure:
    """Figure 6: the mean over a layer's kernels of the largest singular value."""
    return _by_norm(panel, {"mean singular value": lambda r: r["singular_kernel_mean"]})[0]
