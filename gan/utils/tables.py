"""Tables as text, Markdown and CSV, and the numbers in them."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown without a line break at its end; a cell of None is empty."""
    lines = ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def aligned_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a terminal: columns of equal width, two spaces apart, without a line break at its end."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def csv_text(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return CSV text with the column ``names`` as its first line; a cell of None is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    return text.getvalue()


def format_mean_std(entry: dict[str, Any] | None, digits: int = 2, scale: float = 1) -> str:
    """Return "mean ± std" times ``scale``, "mean" where the deviation is unknown, or "-" for an entry without a mean."""
    if entry is None or entry.get("mean") is None:
        return "-"
    deviation = "" if entry.get("std") is None else f" ± {entry['std'] * scale:.{digits}f}"
    return f"{entry['mean'] * scale:.{digits}f}{deviation}"
