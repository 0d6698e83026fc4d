"""Progress of long work: a bar on a terminal, a plain line every ten seconds elsewhere, and messages between them."""

import logging
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from tqdm import tqdm

from gan.utils.safe_reading import printable

log = logging.getLogger(__name__)


class _AboveBars(logging.Handler):
    """Write each record as one line on stderr, above a progress bar if there is one. Results go to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        with suppress(OSError):  # nobody reads stderr any longer, or its disk is full, but the work goes on
            tqdm.write(level + printable(record.getMessage()), file=sys.stderr)


def show_messages() -> None:
    """Show the messages of this project's packages to the user of a command. A library's user configures ``logging`` instead."""
    for package in ("gan", "eval", "study", "benchmarks", "__main__"):  # the last: that of ``python -m``
        logger = logging.getLogger(package)
        if not logger.handlers:
            logger.addHandler(_AboveBars())
            logger.setLevel(logging.INFO)


class _Bar(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # starts no thread that redraws bars


class _Lines:
    """A file that shows what tqdm writes to it as messages."""

    def write(self, text: str) -> None:
        if line := text.strip():
            log.info(line)

    def flush(self) -> None:
        """Do nothing: a message is written at once."""


def progress(total: int, what: str, *, start: int = 0, shown: bool = True, items: Iterable[int] | None = None) -> tqdm:
    """Return a bar of tqdm that counts ``items``, or calls of its ``update``, from ``start`` to ``total``.

    Where stderr is no terminal, the bar is one line every ten seconds instead.
    """
    if sys.stderr.isatty():
        size = shutil.get_terminal_size()  # tqdm draws nothing where a terminal does not report its size
        options = {"file": sys.stderr, "ncols": size.columns, "nrows": size.lines}
    else:
        line = "{desc} {n_fmt}/{total_fmt} {rate_noinv_fmt}  {remaining} left{postfix}"
        options = {"file": _Lines(), "bar_format": line, "mininterval": 10.0, "delay": 10.0, "leave": False}
    return _Bar(items, desc=what, total=total, initial=start, unit="", smoothing=0, miniters=1, disable=not shown, **options)


def follow(items: Iterable[int], total: int, what: str) -> Iterator[int]:
    """Yield ``items`` and show the progress."""
    return iter(progress(total, what, items=items))
