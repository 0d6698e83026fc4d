"""The command ``status``: what runs do at present, once or until all have ended."""

import argparse
import sys
import time
from contextlib import suppress

from gan.launch.report import describe_run
from gan.runs.status import find_runs, read_status
from gan.utils.errors import UserError
from gan.utils.safe_reading import printable_lines

INTERVAL = 5  # seconds
_CLEAR = "\x1b[H\x1b[2J"


def status(options: argparse.Namespace) -> int:
    """Print the state of ``options.runs``, again every few seconds with ``--watch``. Return the exit code."""
    folders = list(dict.fromkeys(folder for given in options.runs for folder in find_runs(given)))
    with suppress(KeyboardInterrupt):  # Ctrl-C is how a watch ends
        while True:
            found, told = [], []
            for folder in folders:
                try:
                    found.append(read_status(folder))
                    told.append(describe_run(found[-1]))
                except UserError as error:
                    if len(folders) == 1:
                        raise
                    told.append(f"{folder}: damaged: {error}")
            text = printable_lines("\n\n".join(told))
            print(_CLEAR + text if options.watch and sys.stdout.isatty() else text, flush=True)
            if not options.watch or all(run.state in ("done", "diverged") for run in found):
                break
            time.sleep(INTERVAL)
    return 0
