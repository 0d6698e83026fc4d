"""Draw Figures 1 and 3 to 6 of the paper, which show layers over training, from the probes of runs."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gan.utils.tables import csv_text
from study.panels import Column, Panel, grid
from study.probes import PAPERS_LAYERS
from study.results import NEARLY_ZERO, Record

HISTOGRAM_LAYERS = (45, 76)  # layers of DenseNet-BC in the paper's Figure 5, which counts them from 0 (see study/probes.py)
SHOWN_SHARE = 0.99  # of the gradient's entries that a histogram shows, those nearest to zero
SHOWN_BINS = 50  # about as many; more are joined


def probes_csv(panel: Panel) -> str:
    """Return the numbers of Figures 1, 3, 4 and 6 as CSV, one line a run, layer and step."""
    recorded = ["gradient_zero", "gradient_std", "weight_mean", "weight_std", "preactivation_mean", "singular_kernel_mean"]
    lines: list[list[object]] = []
    for own in panel:
        model = own.run.config.model
        variant = f"{model.variant} {own.apart}".strip()
        for record in own.run.probes:
            numbers = [record["gradient_below"][NEARLY_ZERO], *(record[name] for name in recorded)]
            lines.append([variant, model.norm, record["layer"], record["step"], *(f"{number:.4g}" for number in numbers)])
    return csv_text(["variant", "norm", "layer", "step", f"gradient_below_{NEARLY_ZERO}", *recorded], lines)


def _papers_layers(panel: Panel) -> list[int]:
    """Return the layers that the paper shows, where all of them are probed, else all probed ones, ascending."""
    probed = sorted({layer for own in panel for layer in own.run.layers})
    return list(PAPERS_LAYERS) if set(PAPERS_LAYERS) <= set(probed) else probed


def _by_norm(panel: Panel, labels: Sequence[str], height: float = 2.4) -> tuple[Figure, Any]:
    """Return a figure over training steps with a column a run and a row for each of ``labels``, and its axes."""
    figure, axes = grid(len(labels), len(panel), height=height, sharex="col", sharey="row")
    for number, own in enumerate(panel):
        axes[0][number].set_title(own.title)
        axes[-1][number].set_xlabel("training step")
    for row, label in enumerate(labels):
        axes[row][0].set_ylabel(label)
    return figure, axes


def _by_layer(panel: Panel, values: dict[str, Callable[[Record], float]], layers: Sequence[int]) -> tuple[Figure, Any]:
    """Draw a column of axes a run, a row for each of the labelled ``values`` and a line for each of ``layers``."""
    figure, axes = _by_norm(panel, list(values))
    colours = matplotlib.colormaps["viridis"](0.88 * np.arange(len(layers)) / max(len(layers) - 1, 1))
    lines: dict[str, Any] = {}
    for number, own in enumerate(panel):
        for layer, colour in zip(layers, colours, strict=True):
            records = own.run.probed(layer)
            for row, value in enumerate(values.values()):
                steps, heights = [r["step"] for r in records], [value(r) for r in records]
                (lines[str(layer)],) = axes[row][number].plot(steps, heights, color=colour)
    figure.legend(lines.values(), lines, loc="outside right center", title="layer", fontsize=8)
    return figure, axes


def _sparsity(panel: Panel) -> Figure:
    """Figure 1: the share of a weight gradient's entries that are exactly zero (top) and nearly zero (bottom).

    It shows all probed layers: exact zeros are in layers that the paper does not show.
    """
    layers = sorted({layer for own in panel for layer in own.run.layers})
    values: dict[str, Callable[[Record], float]] = {
        "gradient entries = 0 (%)": lambda r: 100 * r["gradient_zero"],
        f"|entries| < {NEARLY_ZERO} (%)": lambda r: 100 * r["gradient_below"][NEARLY_ZERO],
    }
    figure, axes = _by_layer(panel, values, layers)
    axes[0][0].set_ylim(-0.03, max(1.0, axes[0][0].get_ylim()[1]))  # lines at zero are visible
    return figure


def _bands(panel: Panel) -> Figure:
    """Figure 3: mean and standard deviation of the weights that a layer applies, as a band; a column a run."""
    layers = _papers_layers(panel)
    figure, axes = _by_norm(panel, [f"layer {layer}" for layer in layers], height=1.25)
    for number, own in enumerate(panel):
        for row, layer in enumerate(layers):
            axis, records = axes[row][number], own.run.probed(layer)
            steps = [r["step"] for r in records]
            mean, deviation = (np.array([r[key] for r in records]) for key in ("weight_mean", "weight_std"))
            axis.fill_between(steps, mean - deviation, mean + deviation, color=own.colour, alpha=0.25, linewidth=0)
            axis.plot(steps, mean, color=own.colour)
    figure.suptitle("weights: mean ± standard deviation", fontsize=9)
    return figure


def _drift(panel: Panel) -> Figure:
    """Figure 4: means of each layer's weights (top, as in the paper's axis) and pre-activations (bottom, as in its text)."""
    values: dict[str, Callable[[Record], float]] = {
        "mean of weights": lambda r: r["weight_mean"],
        "mean of pre-activations": lambda r: r["preactivation_mean"],
    }
    return _by_layer(panel, values, _papers_layers(panel))[0]


def histogram_layers(probed: Sequence[int]) -> list[int]:
    """Return the layers of Figure 5 among those ``probed`` (ascending), else the first and the last.

    Runs of before, which took the paper's numbers to count from 1, recorded the layer before each.
    """
    wanted = HISTOGRAM_LAYERS if set(HISTOGRAM_LAYERS) & set(probed) else [layer - 1 for layer in HISTOGRAM_LAYERS]
    return [layer for layer in wanted if layer in probed] or [probed[0], probed[-1]]


def _histograms(panel: Panel) -> Figure:
    """Figure 5: densities of the gradients of two layers at the last recorded step, each over a range of its own."""
    layers = histogram_layers(_papers_layers(panel))
    figure, axes = grid(len(layers), len(panel))
    for row, layer in enumerate(layers):
        for axis, own in zip(axes[row], panel, strict=True):
            records = own.run.probed(layer)
            if records:
                _histogram(axis, records[-1], own)
        axes[row][0].set_ylabel(f"density, layer {layer}")
    for axis, own in zip(axes[0], panel, strict=True):
        axis.set_title(own.title)
    for axis in axes[-1]:
        axis.set_xlabel("gradient")
    return figure


def central_range(record: Record, share: float = SHOWN_SHARE) -> float:
    """Return the smallest x, an edge of the recorded bins, with at least ``share`` of the gradient's entries in [-x, x]."""
    counts = np.array(record["gradient_histogram"], dtype=float)
    edge = record["gradient_max"] or 1.0
    edges = np.linspace(-edge, edge, len(counts) + 1)
    distances = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))  # of each bin's farther edge from zero
    order = np.argsort(distances, kind="stable")
    reached = int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum()))
    return float(distances[order][min(reached, len(counts) - 1)])


def coarser(counts: NDArray[Any], edges: NDArray[Any], widest: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ``counts`` and ``edges`` of equal bins about zero, joined to bins of which some SHOWN_BINS lie in [-widest, widest].

    The middle bin stays in the middle; outermost bins that fill no joined one are left out.
    """
    shown = int(np.count_nonzero(np.abs(edges) <= widest))
    joined = max(1, (shown // SHOWN_BINS - 1) // 2 * 2 + 1)  # odd, so that a bin lies about zero
    first = (len(counts) // 2 - joined // 2) % joined
    number = (len(counts) - first) // joined
    sums = counts[first : first + number * joined].reshape(number, joined).sum(1)
    return sums, edges[first : first + number * joined + 1 : joined]


def _histogram(axis: Axes, record: Record, own: Column) -> None:
    counts = np.array(record["gradient_histogram"], dtype=float)
    edge = record["gradient_max"] or 1.0
    widest = central_range(record)
    sums, edges = coarser(counts, np.linspace(-edge, edge, len(counts) + 1), widest)
    axis.stairs(sums / counts.sum() / np.diff(edges), edges, fill=True, color=own.colour, alpha=0.7)
    axis.set_xlim(-widest, widest)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.ticklabel_format(axis="both", style="sci", scilimits=(-2, 4), useMathText=True)
    text = f"step {record['step']}\nstd {record['gradient_std']:.1e}\n{SHOWN_SHARE:.0%} within\n±{widest:.1e}"
    axis.text(0.98, 0.97, text, transform=axis.transAxes, ha="right", va="top", fontsize=7)


def _singular_values(panel: Panel) -> Figure:
    """Figure 6: the mean over a layer's kernels of the largest singular value."""
    return _by_layer(panel, {"mean singular value": lambda r: r["singular_kernel_mean"]}, _papers_layers(panel))[0]


PROBE_FIGURES = {1: _sparsity, 3: _bands, 4: _drift, 5: _histograms, 6: _singular_values}
