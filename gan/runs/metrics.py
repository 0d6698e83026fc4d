"""A run's JSON Lines files, metrics.jsonl and probes.jsonl: append, cut off what a resumed run repeats, read the last values."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from gan.utils.errors import UserError
from gan.utils.safe_reading import MAX_JSON, is_number, open_regular, parse_json

METRICS, PROBES = "metrics.jsonl", "probes.jsonl"
_BLOCK = 2**16  # bytes that are read at once


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
    with source as file:
        for line in _from_the_end(file, path):
            try:
                values = parse_json(line)
            except ValueError:
                values = None
            wanted = isinstance(values, dict) and keys[0] in values
            if not isinstance(values, dict) or (wanted and not all(is_number(values.get(key)) for key in ("step", *keys))):
                raise damaged_line(path)
            if wanted:
                return values
    return {}


def _from_the_end(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield the lines of the file of ``path``, the last one first, without the incomplete one that a kill leaves at the end.

    It is not mapped into memory: a resume may cut it meanwhile, and a read beyond the end of a mapped file ends the process.
    """
    end, line, complete = file.seek(0, os.SEEK_END), b"", False
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        block = file.read(end - start)
        if len(block) < end - start:  # it was cut
            return
        line, *lines = (block + line).split(b"\n")
        if len(line) > MAX_JSON:
            raise damaged_line(path)
        if lines and not complete:
            complete = True
            lines.pop()
        yield from reversed(lines)
        end = start
    if complete:
        yield line


def damaged_line(path: Path) -> UserError:
    """Return the error for a file of records, one of whose lines is damaged."""
    return UserError(f"{path}: a line is damaged. Restore the file from a copy, or remove the line.")


class JsonLines:
    """A JSON Lines file, to which objects with "step" are appended. A kill never leaves half a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

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
