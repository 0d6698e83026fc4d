"""Ctrl-C while a program still imports what it needs, which takes seconds: one line, as later from gan.cli."""

import sys
from types import TracebackType


def expect_early() -> None:
    """From here on an interrupt that nothing catches is told in one line. Python then ends the program by SIGINT: 130."""
    sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
