"""The command ``page``: one HTML file of runs."""

import argparse
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gan.page.options import GRIDS
from gan.page.panels import probe_panels, score_panels, training_panels
from gan.page.pictures import MAX_SIDE, QUALITY, Picture, choose_steps, read_picture, read_pictures
from gan.page.records import RunRecord, read_run_records, shared_and_different
from gan.page.rendering import render
from gan.runs.status import find_runs
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.files import write_atomically

log = logging.getLogger(__name__)

_NAMES = ("run.dir", "run.name")  # settings that name a run, as its label does


def page(options: argparse.Namespace) -> int:
    """Write the page that ``options`` ask for. Return the exit code."""
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {options.out}: a page is an .html file.")
    cli.refuse_existing(options)
    folders = [folder for given in options.runs for folder in find_runs(given)]
    try:
        write_page(folders, options.out, options.grids)
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written ({error.strerror}).") from None
    return 0


def write_page(folders: Sequence[Path], out: Path, grids: int = GRIDS) -> None:
    """Write the page of the runs in ``folders``, with samples at ``grids`` steps at most. Raises UserError as their reader."""
    content = _page(read_run_records(folders), grids).encode(errors="backslashreplace")  # a file's name may be no text
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    log.info(f"wrote {out} ({len(content) / 1e6:.1f} MB)")


def _page(runs: Sequence[RunRecord], most: int) -> str:
    from gan.page.curves import draw, run_colours, view_box  # matplotlib takes a second to import

    labels = [run.label for run in runs]
    steps = choose_steps([run.grids for run in runs], most)
    return render(
        "runs.html",
        title=labels[0] if len(runs) == 1 else f"{len(runs)} runs",
        time=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        labels=labels,
        colours=run_colours(len(runs)),
        view_box=view_box(),
        steps=steps,
        pictures=[read_pictures(run.grids, steps) for run in runs],
        grids_note=_note(runs, steps),
        neighbours=_neighbours(runs),
        score_curves={name: draw(panels, labels, f"s{n}-") for n, (name, panels) in enumerate(score_panels(runs).items())},
        training_curves=draw(training_panels(runs), labels, "t"),
        probe_curves=draw(probe_panels(runs), labels, "p"),
        tables=_tables(runs),
    )


def _note(runs: Sequence[RunRecord], steps: Sequence[int]) -> str:
    """Return what the page's pictures leave out."""
    everything = len({step for run in runs for step in run.grids})
    part = f"{len(steps)} of {everything} steps, evenly spaced. " if len(steps) < everything else ""
    size = f"JPEG of quality {QUALITY}, scaled down where a side has more than {MAX_SIDE} pixels"
    return f"{part}The pictures are {size}; the originals are in samples/ of each run."


def _neighbours(runs: Sequence[RunRecord]) -> list[tuple[RunRecord, Picture]]:
    return [(run, read_picture(run.neighbours)) for run in runs if run.neighbours is not None]


def _tables(runs: Sequence[RunRecord]) -> list[tuple[str, list[list[str]], list[list[str]]]]:
    """Return settings and environment: name, rows that the runs share, rows that differ."""
    settings: list[dict[str, Any]] = [{key: v for key, v in run.settings.items() if key not in _NAMES} for run in runs]
    pairs = [("Settings", settings), ("Environment", [run.environment for run in runs])]
    return [(name, *shared_and_different(columns)) for name, columns in pairs]
