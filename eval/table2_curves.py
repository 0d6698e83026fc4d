"""The distance along training, drawn."""

import io

from eval.comparison_keys import distance_label
from eval.formatting import sizes_beyond_floor
from eval.table2_data import Table
from gan.utils.safe_reading import without_mathematics


def draw_curves(table: Table) -> bytes | None:
    """Return a PNG of the distance along each training; None where no run has two points."""
    series = [(index, row, run) for index, row in enumerate(table.rows) for run in row.runs if len(run.curve) > 1]
    if not series:
        return None
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    timed = all(run.seconds for _, _, run in series)
    panels = drawing.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    floor = table.curve["floor"]
    for axes, name in zip(panels, ("generator updates", "minutes of training"), strict=False):
        named: set[int] = set()  # rows that the legend has
        for index, row, run in series:
            places = [step if axes is panels[0] else run.minutes(step) for step in run.curve]
            label = None if index in named else without_mathematics(row.label)
            named.add(index)
            axes.plot(places, list(run.curve.values()), ".-", color=f"C{index}", label=label)
        if floor is not None:
            label = "real data, fewer images" if sizes_beyond_floor(table.curve) else "real data"
            axes.axhline(floor["fid"]["mean"], color="grey", linestyle="--", label=label)
        axes.set(xlabel=name, ylim=(0, None))
    distance = distance_label(table.curve["provenance"]["extractor"])
    panels[0].set_ylabel(f"{distance}, {without_mathematics(table.curve['protocol'])}")
    panels[0].legend()
    out = io.BytesIO()
    drawing.savefig(out, format="png")
    return out.getvalue()
