"""A run's JSON Lines files, metrics.jsonl and probes.jsonl: append, cut off what a resumed run repeats, read the last values."""

import errno
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gan.utils.errors import UserError
from gan.utils.safe_reading import is_number, open_regular, parse_json

METRICS, PROBES = "metrics.jsonl", "probes.jsonl"


def truncate_metrics(path: Path, step: int, *, evaluated: bool = True) -> None:
    """Remove the lines of ``path`` after ``step``, and an incomplete last line, since they will be written again.

    Where ``step`` has not been ``evaluated``, its lines of an evaluation are removed too: those without "seconds". Damaged
    lines are removed with those after ``step``, as a power cut leaves them.

    Raises UserError where lines that are to stay follow a damaged one, and leaves the file as it is.
    """
    if not path.exists():
        return
    end, intact = 0, True
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                later = record["step"] > step or (record["step"] == step and not evaluated and "seconds" not in record)
            except (ValueError, KeyError, TypeError, RecursionError):
                intact = False
                continue
            if not line.endswith(b"\n") or later:
                break
            if not intact:
                raise damaged_line(path)
            end += len(line)
    with path.open("r+b") as file:
        file.truncate(end)


def last_values(path: Path, *keys: str) -> dict[str, Any]:
    """Return the last line of a metrics file that has the first of ``keys``; empty where there is none.

    The file is read from its end, one line at a time, since that of a long run may be larger than the memory.

    Raises UserError for what is no file, a damaged line on the way, or one whose step and ``keys`` are not finite numbers.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    try:
        source = open_regular(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    with source as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1  # an incomplete line follows where the run was killed
        while end > 0:
            start = content.rfind(b"\n", 0, end - 1) + 1
            try:
                values = parse_json(content[start:end])
            except ValueError:
                values = None
            wanted = isinstance(values, dict) and keys[0] in values
            if not isinstance(values, dict) or (wanted and not all(is_number(values.get(key)) for key in ("step", *keys))):
                raise damaged_line(path)
            if wanted:
                return values
            end = start
    return {}


def damaged_line(path: Path) -> UserError:
    """Return the error for a file of records, one of whose lines is damaged."""
    return UserError(f"{path}: a line is damaged. Restore the file from a copy, or remove the line.")


class JsonLines:
    """A JSON Lines file, to which objects with "step" are appended. A kill never leaves half a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one object, whose numbers are finite."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        # One write of less than a page, so that a kill leaves the whole line or none.
        written = os.write(self._file, line)
        if written < len(line):  # the disk is full
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
