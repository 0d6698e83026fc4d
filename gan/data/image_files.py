"""Sources of image files: a folder, or a zip that is read in place."""

import hashlib
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from gan.data.decoding import MAX_FILE_BYTES, decode, has_grey_mode, require_size
from gan.data.image_names import images_among, is_hidden, plain_name, visible_files
from gan.data.labels import Labels, class_folders
from gan.utils.errors import UserError
from gan.utils.safe_reading import Archive, read_file

# Limit of a zip's table of contents: that of ImageNet's 1.3 million images takes 105 to 140 MB. A table of this size can have
# 3.6 million empty entries, which take 2.3 GB of memory.
MAX_TABLE_BYTES = 160 * 2**20
# What is read of a folder to compare its content: about a second's work.
_SAMPLE_BYTES, _SAMPLE_FILES = 2**28, 20_000


class FolderSource:
    """The image files of a folder and the folders in it, in the order of their paths. Hidden and system files are left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names, links = visible_files(root)
        self.names, kinds = images_among(names, root)
        self.remarks = links + kinds

    def __len__(self) -> int:
        return len(self.names)

    def _read_file(self, name: str) -> bytes:
        path = self.root / name
        require_size(self._size(name), str(path))
        try:
            return read_file(path, MAX_FILE_BYTES)
        except OSError as error:
            raise _unreadable(path, error) from None

    def _size(self, name: str) -> int:
        return self._status(name).st_size

    def _status(self, name: str) -> os.stat_result:
        path = self.root / name
        try:
            return path.stat()
        except OSError as error:  # such as a link that leads nowhere
            raise _unreadable(path, error) from None

    def read(self, index: int) -> Image.Image:
        name = self.names[index]
        return decode(self._read_file(name), str(self.root / name))

    def is_grey(self, index: int) -> bool:
        name = self.names[index]
        return has_grey_mode(self._read_file(name), str(self.root / name))

    def fingerprint(self) -> str:
        return digest(f"{name}\0{self._size(name)}" for name in self.names)

    def content(self, start: int = 0, end: int | None = None) -> str:
        return digest(f"{name}\0{hashlib.sha256(self._read_file(name)).hexdigest()}" for name in self.names[start:end])

    def times(self) -> str:
        # The second time changes with the content even where a program sets the first one back.
        found = ((name, self._status(name)) for name in self.names)
        return digest(f"{name}\0{status.st_mtime_ns}\0{status.st_ctime_ns}" for name, status in found)

    def sample(self) -> str:
        total = sum(map(self._size, self.names))
        every = max(1, -(-total // _SAMPLE_BYTES), -(-len(self.names) // _SAMPLE_FILES))
        return digest(hashlib.sha256(self._read_file(name)).hexdigest() for name in self.names[::every])

    def labels(self) -> Labels:
        return class_folders(self.names, self.root)


class ZipSource:
    """The image files of a .zip archive, read in place, in the order of their names. Hidden and system files are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, Archive] | None = None
        try:
            entries = self._archive().infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: not a .zip archive that can be read ({error}).") from None
        # Of two entries of one name, the later one replaces the earlier one, as it does when a zip is extracted.
        files = {entry.filename: entry for entry in entries if not entry.filename.endswith(("/", "\\"))}
        visible = [name for name in files if not any(map(is_hidden, plain_name(name).split("/")))]
        names, self.remarks = images_among(visible, path)
        self.entries = [files[name] for name in names]

    def __len__(self) -> int:
        return len(self.entries)

    def __reduce__(self) -> tuple[type["ZipSource"], tuple[Path]]:
        # A process that is not forked reads the table of contents itself: sending it would take as long, and more memory.
        return ZipSource, (self.path,)

    def _archive(self) -> Archive:
        # A forked worker must not share the file position of the process that it was forked from.
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), Archive(self.path, table=MAX_TABLE_BYTES))
        return self._open[1]

    def _where(self, index: int) -> str:
        return f"{self.path}: {self.entries[index].filename}"

    def _content(self, index: int) -> bytes:
        entry = self.entries[index]
        require_size(max(entry.file_size, entry.compress_size), self._where(index))
        try:
            return self._archive().content(entry, MAX_FILE_BYTES)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{self._where(index)}: cannot be read ({error}).") from None

    def read(self, index: int) -> Image.Image:
        return decode(self._content(index), self._where(index))

    def is_grey(self, index: int) -> bool:
        return has_grey_mode(self._content(index), self._where(index))

    def fingerprint(self) -> str:
        return self.content()

    def content(self, start: int = 0, end: int | None = None) -> str:
        return digest(f"{e.filename}\0{e.file_size}\0{e.CRC}" for e in self.entries[start:end])

    def times(self) -> str:
        return ""

    sample = times

    def labels(self) -> Labels:
        return class_folders([plain_name(entry.filename) for entry in self.entries], self.path)


def digest(lines: Iterable[str]) -> str:
    """Return the SHA-256 of ``lines``, each with a line feed after it."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error}).")
