"""The distance along training, drawn."""

import io

from eval.comparison_keys import distance_label
from eval.table2_data import Table


def distances(table: Table) -> bytes | None:
    """PNG of the distance along each training; None where no run has two points."""
    series = [(row, run) for row in table.rows for run in row.runs if len(run.curve) > 1]
    if not series or table.curve is None:
        return None
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    timed = all(point.minutes is not None for _, run in series for point in run.curve)
    panels = drawing.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    colours = {row.label: f"C{index}" for index, row in enumerate(table.rows)}
    floor = table.curve["floor"]
    for axes, name in zip(panels, ("generator updates", "minutes of training"), strict=False):
        for row, run in series:
            places = [point.step if axes is panels[0] else point.minutes for point in run.curve]
            label = row.label if run is row.runs[0] else None
            axes.plot(places, [point.distance for point in run.curve], ".-", color=colours[row.label], label=label)
        if floor is not None:
            axes.axhline(floor["fid"]["mean"], color="grey", linestyle="--", label="real data")
        axes.set(xlabel=name, ylim=(0, None))
    panels[0].set_ylabel(f"{distance_label(table.extractor)}, {table.curve['protocol']}")
    panels[0].legend()
    out = io.BytesIO()
    drawing.savefig(out, format="png")
    return out.getvalue()
