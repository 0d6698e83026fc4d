"""Where images come from: a directory tree, a zip, scikit-learn's digits, or a data set that torchvision knows."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gan.data.decoding import MAX_FILE_BYTES, decode, is_grey, is_image_name, require_size
from gan.data.torchvision_sets import load_published
from gan.utils.errors import UserError
from gan.utils.safe_reading import Archive, read_file
from gan.utils.settings import DataConfig

Bytes = NDArray[np.uint8]
# Of a zip: ImageNet's 1.3 million images take 105 to 140 MB. 3.6 million empty entries fit in, and 2.3 GB are needed for them.
MAX_TABLE_BYTES = 160 * 2**20


class Labels(NamedTuple):
    """What each image of a source shows."""

    numbers: NDArray[np.int64]  # of the class of each image: (N,), from 0
    classes: tuple[str, ...]  # names


class Source(Protocol):
    """Images by index, as Pillow reads them, and their classes where it knows them.

    ``fingerprint`` tells whether two sources hold the same images: by their pixels, a zip's by its checksums, a
    directory's by names and sizes alone, since reading it all could take hours. ``content`` reads it all.
    """

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image: ...
    def fingerprint(self) -> str: ...
    def content(self) -> str: ...
    def labels(self) -> Labels:
        """Raises UserError where it knows no classes."""
        ...


class ArraySource:
    """Images that are already in memory, uint8, (N, H, W) or (N, H, W, C), each with its class of 0 to ``classes`` - 1."""

    def __init__(self, images: Bytes, numbers: NDArray[Any], classes: int = 10) -> None:
        assert len(images) == len(numbers)
        self.images, self.numbers, self.classes = images, np.asarray(numbers, dtype=np.int64), classes

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.images.shape).encode() + np.ascontiguousarray(self.images).tobytes()).hexdigest()

    content = fingerprint

    def labels(self) -> Labels:
        return Labels(self.numbers, tuple(map(str, range(self.classes))))


class FolderSource:
    """The image files of a directory tree, by name, in the order of their paths. Class folders are just folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = (path.relative_to(root).as_posix() for path in _walk(root))
        self.names = sorted(filter(is_image_name, names))

    def __len__(self) -> int:
        return len(self.names)

    def _bytes(self, name: str) -> bytes:
        path = self.root / name
        require_size(self._size(name), str(path))
        try:
            return read_file(path, MAX_FILE_BYTES)
        except OSError as error:
            raise _unreadable(path, error) from None

    def _size(self, name: str) -> int:
        path = self.root / name
        try:
            return path.stat().st_size
        except OSError as error:  # such as a link that leads nowhere
            raise _unreadable(path, error) from None

    def read(self, index: int) -> Image.Image:
        name = self.names[index]
        return decode(self._bytes(name), str(self.root / name))

    def fingerprint(self) -> str:
        return _digest(f"{name}\0{self._size(name)}" for name in self.names)

    def content(self) -> str:
        return _digest(f"{name}\0{hashlib.sha256(self._bytes(name)).hexdigest()}" for name in self.names)

    def labels(self) -> Labels:
        return _class_folders(self.names, self.root)


class ZipSource:
    """The image files of a .zip archive, read in place, in the order of their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, Archive] | None = None
        try:
            entries = [e for e in self._archive().infolist() if not e.is_dir() and is_image_name(e.filename)]
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: not a .zip archive that can be read ({error}).") from None
        self.entries = sorted(entries, key=lambda entry: entry.filename)

    def __len__(self) -> int:
        return len(self.entries)

    def __reduce__(self) -> tuple[type["ZipSource"], tuple[Path]]:
        # A process that is not forked reads the table of contents again: sent to it, that would take as long and more memory.
        return ZipSource, (self.path,)

    def _archive(self) -> Archive:
        # A worker process must not share the file position of the one that it was forked from.
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), Archive(self.path, table=MAX_TABLE_BYTES))
        return self._open[1]

    def read(self, index: int) -> Image.Image:
        entry = self.entries[index]
        where = f"{self.path}: {entry.filename}"
        require_size(max(entry.file_size, entry.compress_size), where)
        try:
            content = self._archive().content(entry, MAX_FILE_BYTES)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{where}: cannot be read ({error}).") from None
        return decode(content, where)

    def fingerprint(self) -> str:
        return _digest(f"{e.filename}\0{e.file_size}\0{e.CRC}" for e in self.entries)

    content = fingerprint

    def labels(self) -> Labels:
        return _class_folders([entry.filename for entry in self.entries], self.path)


class Part:
    """Some of a source's images, in the order of ``indices``."""

    def __init__(self, whole: Source, indices: NDArray[np.int64]) -> None:
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        return self.whole.read(int(self.indices[index]))

    def _part_of(self, name: str) -> str:
        return hashlib.sha256(name.encode() + self.indices.tobytes()).hexdigest()

    def fingerprint(self) -> str:
        return self._part_of(self.whole.fingerprint())

    def content(self) -> str:
        return self._part_of(self.whole.content())

    def labels(self) -> Labels:
        numbers, classes = self.whole.labels()
        return Labels(numbers[self.indices], classes)


def part_of(source: Source, indices: NDArray[np.int64]) -> Part:
    """Some of a source's images; of a part, a part of the whole."""
    return Part(source.whole, source.indices[indices]) if isinstance(source, Part) else Part(source, indices)


def _whole(source: Source) -> Source:
    return source.whole if isinstance(source, Part) else source


def is_archive(source: Source) -> bool:
    """Whether its fingerprint, which is had without reading it all, is of its content."""
    return isinstance(_whole(source), ZipSource)


def needs_decoding(source: Source) -> bool:
    """Whether its images are files."""
    return not isinstance(_whole(source), ArraySource)


def _class_folders(names: Sequence[str], where: Path) -> Labels:
    """Classes by the folder that holds each file, in the order of their names."""
    folders = [name.split("/")[-2] if "/" in name else "" for name in names]
    classes = tuple(sorted(set(folders)))
    if "" in classes or len(classes) < 2:
        raise UserError(f"{where}: no classes. Expected the images in one folder a class, such as cat/1.png and dog/2.png.")
    number = {name: index for index, name in enumerate(classes)}
    return Labels(np.array([number[folder] for folder in folders], dtype=np.int64), classes)


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}), so some images would be missing.")

    for folder, _, files in os.walk(root, onerror=refuse):
        for name in files:
            yield Path(folder) / name


def _digest(lines: Iterator[str]) -> str:
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error}).")


def _digits() -> ArraySource:
    """scikit-learn's 1,797 digits of 8x8 pixels with values 0 to 16 (UCI optical recognition, test part)."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    digits = load_digits()
    return ArraySource(np.asarray(np.rint(digits.images * (255 / 16)), dtype=np.uint8), digits.target)


def open_source(data: DataConfig) -> Source:
    """The images that ``data`` names. Raises UserError when there are none, or they cannot be had."""
    if data.name == "digits":
        return _digits()
    if data.name != "folder":
        return ArraySource(*load_published(data))
    assert data.path is not None
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"{path}: no such folder or .zip (looked at {path.resolve()}).")
    source: Source = FolderSource(path) if path.is_dir() else ZipSource(path)
    if not len(source):
        raise UserError(f"{path}: holds no images. Expected files such as .png or .jpg, in class folders or not.")
    return source


def image_channels(data: DataConfig, source: Source | None = None) -> int:
    """Channels of the images that ``data`` names, without reading more of it than needed; ``source`` is what
    ``open_source`` made of it, where that is at hand."""
    if data.channels is not None:
        return data.channels
    if data.name == "folder":
        return 1 if is_grey((source or open_source(data)).read(0)) else 3
    return 1 if data.name in ("digits", "mnist", "fashion_mnist") else 3
