"""What the figures share: their style, grids of axes, and the columns of a figure that shows one run in each."""

import textwrap
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from study.config import NORM_NAMES
from study.results import ClassifierRun

STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "figure.constrained_layout.use": True, "lines.linewidth": 1.2, "pdf.fonttype": 42,
}  # fmt: skip
NORM_COLOURS = {
    "none": "#777777", "batch": "#1f77b4", "spectral": "#d62728", "mean_spectral": "#2ca02c",
    "spectral_projected": "#ff7f0e", "mean_spectral_projected": "#17becf",
}  # fmt: skip
VARIANT_NAMES = {"full": "as written", "published": "BN inside the dense layers", "released": "as released"}
WIDTH = 3.1  # of a panel in inches, in a figure of up to three columns
FULL_WIDTH = 12.0  # in inches, of figures with more


@dataclass(frozen=True)
class Column:
    """One run in a figure that shows several, and its heading."""

    title: str
    run: ClassifierRun
    apart: str = ""  # the settings that tell it from the other columns

    @property
    def colour(self) -> str:
        return NORM_COLOURS[self.run.config.model.norm]


Panel = list[Column]  # the columns of a figure, from left to right


def column(run: ClassifierRun, *, name_variant: bool, apart: str = "") -> Column:
    """Return the column of ``run`` under its norm's name, after its variant's where the figure shows several variants.

    ``apart`` names the settings that tell it from the other columns.
    """
    model = run.config.model
    norm = NORM_NAMES[model.norm]
    title = f"{VARIANT_NAMES[model.variant]}:\n{norm}" if name_variant else norm
    return Column(title + "".join(f"\n{line}" for line in textwrap.wrap(apart, 34)), run, apart)


def grid(rows: int, columns: int, *, height: float = 2.4, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of ``rows`` and ``columns`` of axes, and the axes."""
    figure = Figure(figsize=(min(WIDTH * columns, FULL_WIDTH) + 0.9, height * rows + 0.3))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)
