"""Panels as SVG drawings that take the colours of the page around them."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from gan.page.panels import Panel, Points

_WIDTH, _HEIGHT = 316, 180  # points
_POINTS = 400  # of a line at most
_INK = "#010203"  # replaced by the colour of the page's text
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "lines.linewidth": 1.2, "lines.markersize": 2.5, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.15,
    **dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color", "grid.color"], _INK),
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A panel as SVG."""

    panel: Panel
    description: str  # what a reader hears who does not see it
    svg: Markup
    last: int  # step at the right end
    left: float  # of the place of the curves, from step 0, in units of the drawing
    width: float
    top: float
    bottom: float


def run_colours(count: int) -> list[str]:
    """Return a colour for each of ``count`` runs, as #rrggbb."""
    if count <= 10:
        return [to_hex(colour) for colour in colormaps["tab10"](range(count))]
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0.08, 0.95, count))]


def draw(panels: Sequence[Panel], labels: Sequence[str], prefix: str) -> list[Drawing]:
    """Return ``panels`` as drawings, whose ids begin with ``prefix``: they must differ within a page."""
    colours = run_colours(len(labels))
    return [_draw(panel, labels, colours, f"{prefix}{number}-") for number, panel in enumerate(panels)]


def _draw(panel: Panel, labels: Sequence[str], colours: Sequence[str], prefix: str) -> Drawing:
    last = max(1, *(max(line.points) for line in panel.lines), *(step for _, step in panel.events))
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
        axes = figure.subplots()
        for line in panel.lines:
            steps, values = _thinned(line.points)
            marker, style = "o" if len(steps) < 40 else "", "--" if line.dashed else "-"
            axes.plot(steps, values, style, marker=marker, color=colours[line.run], clip_on=False)
        if panel.floor is not None:
            axes.axhline(panel.floor, color=_INK, linestyle=":", alpha=0.6)
        for run, step in panel.events:
            axes.axvline(step, color=colours[run], linewidth=3, alpha=0.35)
        axes.set_xlim(0, last)
        sizes = [value for line in panel.lines for value in line.points.values() if value > 0]
        _set_ticks(axes, panel.logarithmic and max(sizes, default=1) > 100 * min(sizes, default=1))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    left, bottom, width, height = axes.get_position().bounds  # parts of the drawing, from below
    return Drawing(
        panel=panel,
        description=_description(panel, labels),
        svg=_inline(text.getvalue(), prefix),
        last=last,
        left=left * _WIDTH,
        width=width * _WIDTH,
        top=(1 - bottom - height) * _HEIGHT,
        bottom=(1 - bottom) * _HEIGHT,
    )


def _set_ticks(axes: Axes, logarithmic: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


def _thinned(points: Points) -> tuple[list[int], list[float]]:
    """Return steps, ascending, and values; of many, the smallest and the largest of each of equal parts, so that peaks stay."""
    steps = sorted(points)
    values = np.array([points[step] for step in steps])
    if len(steps) > _POINTS:
        parts = np.array_split(np.arange(len(steps)), _POINTS // 2)
        low, high = np.where(np.isnan(values), np.inf, values), np.where(np.isnan(values), -np.inf, values)
        chosen = sorted({int(part[pick]) for part in parts for pick in (low[part].argmin(), high[part].argmax())})
        steps, values = [steps[index] for index in chosen], values[chosen]
    return steps, values.tolist()


def _description(panel: Panel, labels: Sequence[str]) -> str:
    """Return the panel in words: what it shows, and where each line begins and ends."""
    ends = []
    for line in panel.lines:
        steps = sorted(line.points)
        at = " to ".join(f"{line.points[step]:.4g} at step {step:,}" for step in dict.fromkeys((steps[0], steps[-1])))
        ends.append(f"{labels[line.run]}{', dashed' if line.dashed else ''}: {at}")
    return f"{panel.title} ({panel.note}) over steps. {'; '.join(ends)}."


def _inline(svg: str, prefix: str) -> Markup:
    """Return matplotlib's file ``svg`` as the inside of an element of a page."""
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", inside, flags=re.DOTALL)  # the style is one of the whole page
    inside = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", inside).replace(_INK, "currentColor")
    return Markup(inside)  # it holds numbers and no text of a run


def view_box() -> str:
    """Return the units of all drawings."""
    return f"0 0 {_WIDTH} {_HEIGHT}"
