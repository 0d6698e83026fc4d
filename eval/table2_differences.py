"""Which rows of Table II differ: the distance of each less that of SNGAN, with Welch's interval over training seeds."""

import numpy as np

from eval.differences import Difference, Group, difference
from eval.table2_data import Table, Table2Row


def baseline(table: Table) -> Table2Row:
    """Return the row that the others are compared with: that of SNGAN, else the first one."""
    sngan = [row for row in table.rows if row.label == "SNGAN" or row.label.startswith("SNGAN [")]
    return (sngan or table.rows)[0]


def distance_difference(table: Table, row: Table2Row, protocol: str) -> Difference | None:
    """Return the difference of the distance of ``row`` to that of the baseline.

    None for the baseline, without scores, and where the two were trained on different images.
    """
    other = baseline(table)
    trained_on = {run.images for own in (row, other) for run in own.runs if run.images}
    a, b = (_group(own, protocol) for own in (row, other))
    if row is other or a is None or b is None or len(trained_on) > 1:
        return None
    return difference(a, b, lower_is_better=True)


def _group(row: Table2Row, protocol: str) -> Group | None:
    """Return the distances of a row's trainings, and the standard error of each, a mean over runs of one generator.

    A protocol of one run has no deviation over samplings: that error is then 0, and the interval rests on the seeds alone.
    """
    found = [run.records[protocol]["scores"]["fid"] for run in row.runs if protocol in run.records]
    if not found:
        return None
    errors = [(entry.get("std") or 0.0) / np.sqrt(max(1, len(entry.get("values", [])) - 1)) for entry in found]  # std: ddof=0
    return Group([entry["mean"] for entry in found], errors)


def describe(found: Difference | None) -> str:
    """Return the difference, its 95% interval and the verdict; "-" where there is none."""
    if found is None:
        return "-"
    if found.interval is None:
        return found.verdict
    low, high = found.interval
    return f"{found.difference:+.2f} ({low:+.2f} to {high:+.2f}): {mark(found) or 'no verdict'}"


def mark(found: Difference | None) -> str:
    """Return "better" or "worse" than the baseline; "" where there is no verdict."""
    verdicts = {"A is better": "better", "B is better": "worse"}
    return "" if found is None else verdicts.get(found.verdict, "")
