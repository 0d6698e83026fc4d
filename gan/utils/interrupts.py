"""Ctrl-C while a program imports what it needs, which takes seconds: ends it at once, with the line that gan.utils.cli has later.

Left to Python, the interrupt shows a traceback, or is swallowed half way: torch goes on without numpy, and trips over that.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

LINE = b"error: interrupted.\n"


def end_at_once() -> None:
    """From here on Ctrl-C ends the process. Nothing may have been begun that it would leave half done."""
    signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, as Python has it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def importing() -> Iterator[None]:
    """Inside the block, Ctrl-C ends the process."""
    end_at_once()
    try:
        yield
    finally:
        raise_again()


def _end(_number: int, _frame: object) -> None:
    os.write(2, LINE)
    os._exit(128 + signal.SIGINT)
