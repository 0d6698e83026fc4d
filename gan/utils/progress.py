"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, and messages between them."""

import logging
import shutil
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from gan.utils.safe_reading import printable

log = logging.getLogger(__name__)


class _AboveBars(logging.Handler):
    """Write each record as one line on stderr, above a progress bar if there is one. Results go to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(level + printable(record.getMessage()), file=sys.stderr)


def show_messages() -> None:
    """Show the messages of this project's packages to the user of a command. A library's user configures ``logging`` instead."""
    for package in ("gan", "eval", "study", "benchmarks"):
        logger = logging.getLogger(package)
        if not logger.handlers:
            logger.addHandler(_AboveBars())
            logger.setLevel(logging.INFO)


_WORTH_A_LINE = 1.0  # seconds: the end of a shorter task is not reported


class Progress:
    """Shows the steps done, the rate, the time left and a few values."""

    def __init__(self, start: int, total: int, unit: str, *, shown: bool, every_seconds: float = 10.0) -> None:
        self.done, self.total, self.unit, self.shown, self.every_seconds = start, total, unit, shown, every_seconds
        self._start, self._began = start, time.monotonic()
        self._last_line = self._began
        self._bar = None
        if shown and sys.stderr.isatty():
            size = shutil.get_terminal_size()  # tqdm draws nothing where a terminal does not report its size
            self._bar = tqdm(total=total, initial=start, unit=unit, ncols=size.columns, nrows=size.lines, file=sys.stderr)

    def advance(self, values: str = "", steps: int = 1) -> None:
        """Count ``steps`` more. ``values`` are shown when the line is next drawn; an empty text keeps the last ones."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)
            if values:
                self._bar.set_postfix_str(values, refresh=False)
        elif self.shown and (values or self.done == self.total):
            now = time.monotonic()
            ending = self.done == self.total and now - self._began >= _WORTH_A_LINE
            if now - self._last_line >= self.every_seconds or ending:
                self._last_line = now
                rate = (self.done - self._start) / max(now - self._began, 1e-9)
                left = (self.total - self.done) / rate
                log.info(f"{self.unit} {self.done}/{self.total}  {rate:.2f}/s  {_clock(left)} left  {values}".rstrip())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def follow(items: Iterator[int], total: int, what: str) -> Iterator[int]:
    """Yield ``items`` and show the progress."""
    with Progress(0, total, what, shown=True, every_seconds=5.0) as progress:
        for item in items:
            yield item
            progress.advance(" ")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
