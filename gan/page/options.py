"""The options of the command ``page``."""

import argparse

from gan.utils import cli

GRIDS = 100  # of a run, by default


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``page``."""
    parser.add_argument("runs", nargs="+", type=cli.path, metavar="RUN", help="runs, or folders that contain runs")
    cli.add_out(parser, "the .html file to write")
    parser.add_argument(
        "--grids", type=cli.whole_number(2), default=GRIDS, metavar="N", help=f"steps with samples, at most (default {GRIDS})"
    )
