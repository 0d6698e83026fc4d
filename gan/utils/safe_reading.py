"""Read untrusted files without running code and within size limits: JSON, JSON Lines, zips; and print untrusted names."""

import errno
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gan.utils.errors import UserError

MAX_JSON = 2**24  # bytes of one JSON document, such as environment.json: a run writes 1 kB of it at each start
_MAX_RECORDS = 2**30  # bytes of a file of records, of which the longest trainings write some hundred million
_MAX_DEPTH = 50


def printable(text: str) -> str:
    """Return ``text`` in one line, with control characters escaped, which could move a terminal's cursor or recolour it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return ``text`` with each of its lines ``printable``."""
    return "\n".join(map(printable, text.split("\n")))


def without_mathematics(text: str) -> str:
    """Return ``text`` as a label for matplotlib, which takes what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def open_regular(path: Path) -> io.FileIO:
    """Open a file for reading. Raises OSError for a folder, a device or a pipe, without waiting for the pipe's writer."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return io.FileIO(handle)
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise PermissionError(errno.EACCES, "a pipe or a device, not a file", str(path))


def read_file(path: Path, most: int) -> bytes:
    """Return the content of a file. Raises OSError for one of more than ``most`` bytes, and as ``open_regular``."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"has {size:,} bytes; at most {most:,} are read", str(path))
        return file.read(size)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError where it is invalid or nested too deeply."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [found]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
        if not level:
            return found
    raise ValueError("nested too deep")


def _inside(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def is_whole(value: Any) -> bool:
    """Return whether ``value`` is a count: a whole number from 0 to 2^63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a finite number. Python's JSON also reads NaN, and whole numbers larger than any float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON objects, each with "step"; none where there is no file. A last line that a kill cut
    off is left out; one that only lacks its newline, as some editors leave it, is not.

    Raises ValueError for a line that is no such object, OSError as ``read_file``.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_file(path, _MAX_RECORDS).splitlines(keepends=True), 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if record is None and not line.endswith(b"\n"):
            break
        if not isinstance(record, dict) or not is_whole(record.get("step")):
            raise ValueError(f"line {number}")
        records.append(record)
    return records


def refuse_links(*folders: Path) -> None:
    """Raise UserError where one of a run's ``folders`` contains a symbolic link.

    Whoever made the link could have the run's records written into any file of the user.
    """
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_symlink():
                raise UserError(
                    f"{path}: a link, and what is written to it would go elsewhere. Remove it, or put what it leads to here."
                )


class _Limited(io.BufferedReader):
    """A file that reads at most ``most`` bytes at once."""

    most = 2**30

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise zipfile.BadZipFile(f"its table of contents has {size:,} bytes; at most {self.most:,} are read")
        return super().read(size)


class Archive(zipfile.ZipFile):
    """A zip that is read in place. Nothing is extracted to the disk, so the paths in it do no harm."""

    _source: "_Limited | None" = None

    def __init__(self, path: Path, *, table: int) -> None:
        """Reads a table of contents of at most ``table`` bytes, 46 and the name for each entry: zipfile reads it at once and
        needs some fifteen times as much memory for it.

        Raises BadZipFile for another one and what is no zip, OSError as ``open_regular``.
        """
        self._source = _Limited(open_regular(path))
        self._source.most = table
        try:
            super().__init__(self._source)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 (the table may hold any bytes, and zipfile trips over them in many ways)
            raise zipfile.BadZipFile(str(error)) from None
        self._source.most = _Limited.most

    def close(self) -> None:
        super().close()
        if self._source is not None:
            self._source.close()

    def content(self, entry: zipfile.ZipInfo, most: int) -> bytes:
        """Return the content of an entry. Raises BadZipFile where it has more than ``most`` bytes or cannot be read."""
        if max(entry.file_size, entry.compress_size) > most:
            raise zipfile.BadZipFile(f"has {max(entry.file_size, entry.compress_size):,} bytes; at most {most:,} are read")
        # zipfile gives the others' decompressors no bound: 3 kB of bzip2 can become 4 GB.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"compressed by method {entry.compress_type}; only stored and deflated entries are read")
        try:
            with self.open(entry) as file:
                content = file.read(entry.file_size)  # without a number it would unpack 2 GB, whatever file_size claims
        except Exception as error:  # noqa: BLE001 (as above)
            raise zipfile.BadZipFile(str(error) or type(error).__name__) from None
        if len(content) < entry.file_size:
            raise zipfile.BadZipFile(f"ends after {len(content):,} of {entry.file_size:,} bytes")
        return content
