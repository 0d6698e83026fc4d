"""Sources of images: a folder, a zip, scikit-learn's digits, or a data set that torchvision knows."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gan.data.decoding import MAX_FILE_BYTES, Pixels, decode, is_image_name, require_size
from gan.data.torchvision_sets import load_published
from gan.utils.errors import UserError
from gan.utils.safe_reading import Archive, read_file
from gan.utils.settings import DataConfig

# Limit of a zip's table of contents: that of ImageNet's 1.3 million images takes 105 to 140 MB. A table of this size can have
# 3.6 million empty entries, which take 2.3 GB of memory.
MAX_TABLE_BYTES = 160 * 2**20


class Labels(NamedTuple):
    """The class of each image of a source."""

    class_indices: NDArray[np.int64]  # (N,), from 0
    classes: tuple[str, ...]  # names


class Source(Protocol):
    """Images by index, as Pillow reads them, and their classes if it knows them."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """Read one image. Raises UserError if it cannot be read or decoded."""
        ...

    def fingerprint(self) -> str:
        """Return a name for these images that is quick to compute: two sources of one fingerprint count as the same.

        It is made from an array's pixels and a zip's checksums, but only from the names and sizes of a folder's files,
        since reading all of them could take hours.
        """
        ...

    def content(self) -> str:
        """Return a name for the images' content that changes with any of their bytes; reads all files of a folder."""
        ...

    def labels(self) -> Labels:
        """Return the class of each image. Raises UserError if the source has no classes."""
        ...


class ArraySource:
    """Images in memory, (N, H, W) or (N, H, W, C) uint8, each with a class from 0 to ``classes`` - 1."""

    def __init__(self, images: Pixels, class_indices: NDArray[Any], classes: int = 10) -> None:
        assert len(images) == len(class_indices)
        self.images, self.classes = images, classes
        self.class_indices = np.asarray(class_indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.images.shape).encode() + np.ascontiguousarray(self.images).tobytes()).hexdigest()

    content = fingerprint

    def labels(self) -> Labels:
        return Labels(self.class_indices, tuple(map(str, range(self.classes))))


class FolderSource:
    """The image files of a folder and the folders in it, in the order of their paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = (path.relative_to(root).as_posix() for path in _walk(root))
        self.names = sorted(filter(is_image_name, names))

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
        path = self.root / name
        try:
            return path.stat().st_size
        except OSError as error:  # such as a link that leads nowhere
            raise _unreadable(path, error) from None

    def read(self, index: int) -> Image.Image:
        name = self.names[index]
        return decode(self._read_file(name), str(self.root / name))

    def fingerprint(self) -> str:
        return _digest(f"{name}\0{self._size(name)}" for name in self.names)

    def content(self) -> str:
        return _digest(f"{name}\0{hashlib.sha256(self._read_file(name)).hexdigest()}" for name in self.names)

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
        # A process that is not forked reads the table of contents itself: sending it would take as long, and more memory.
        return ZipSource, (self.path,)

    def _archive(self) -> Archive:
        # A forked worker must not share the file position of the process that it was forked from.
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


class Subset:
    """Some of the images of the source ``whole``, in the order of ``indices``."""

    def __init__(self, whole: Source, indices: NDArray[np.int64]) -> None:
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        return self.whole.read(int(self.indices[index]))

    def _name(self, name: str) -> str:
        return hashlib.sha256(name.encode() + self.indices.tobytes()).hexdigest()

    def fingerprint(self) -> str:
        return self._name(self.whole.fingerprint())

    def content(self) -> str:
        return self._name(self.whole.content())

    def labels(self) -> Labels:
        class_indices, classes = self.whole.labels()
        return Labels(class_indices[self.indices], classes)


def subset(source: Source, indices: NDArray[np.int64]) -> Subset:
    """Return the images of ``source`` at ``indices``; a subset of a subset is one of the whole."""
    return Subset(source.whole, source.indices[indices]) if isinstance(source, Subset) else Subset(source, indices)


def _whole(source: Source) -> Source:
    return source.whole if isinstance(source, Subset) else source


def is_archive(source: Source) -> bool:
    """Return whether the images are in a zip, whose quick fingerprint identifies their content."""
    return isinstance(_whole(source), ZipSource)


def needs_decoding(source: Source) -> bool:
    """Return whether the images are files, not arrays."""
    return not isinstance(_whole(source), ArraySource)


def _class_folders(names: Sequence[str], where: Path) -> Labels:
    """Return the class of each file: the name of its folder. Classes are numbered in the order of these names."""
    folders = [name.split("/")[-2] if "/" in name else "" for name in names]
    classes = tuple(sorted(set(folders)))
    if "" in classes or len(classes) < 2:
        raise UserError(f"{where}: no classes. Expected the images in one folder a class, such as cat/1.png and dog/2.png.")
    index_of = {name: index for index, name in enumerate(classes)}
    return Labels(np.array([index_of[folder] for folder in folders], dtype=np.int64), classes)


def _walk(root: Path) -> Iterator[Path]:
    """Yield all files below ``root``. Raises UserError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}), so some images would be missing.")

    for folder, _, files in os.walk(root, onerror=refuse):
        for name in files:
            yield Path(folder) / name


def _digest(lines: Iterator[str]) -> str:
    """Return the SHA-256 of ``lines``, each with a line feed after it."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error}).")


def _digits() -> ArraySource:
    """Return scikit-learn's 1,797 digits of 8x8 pixels with values 0 to 16 (UCI optical recognition, test part)."""
    from sklearn.datasets import load_digits  # takes seconds to import, and only this data set needs it

    digits = load_digits()
    return ArraySource(np.asarray(np.rint(digits.images * (255 / 16)), dtype=np.uint8), digits.target)


def open_source(data: DataConfig) -> Source:
    """Open the images that ``data`` names.

    Raises UserError if there are none, and for a published data set that is neither on the disk nor can be downloaded.
    """
    if data.name == "digits":
        return _digits()
    if data.name != "folder":
        return ArraySource(*load_published(data))
    assert data.path is not None
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"{path}: no such folder or .zip ({path.resolve()}). Set data.path to one that exists.")
    source: Source = FolderSource(path) if path.is_dir() else ZipSource(path)
    if not len(source):
        raise UserError(f"{path}: holds no images. Expected files such as .png or .jpg, in class folders or not.")
    return source


def image_channels(data: DataConfig, source: Source | None = None) -> int:
    """Return the number of channels of the images that ``data`` names, 1 or 3: that of the first image of a folder or zip.

    ``source`` is the result of ``open_source(data)``, if the caller has it; otherwise a folder or zip is opened here.
    """
    if data.channels is not None:
        return data.channels
    if data.name == "folder":
        return 1 if (source or open_source(data)).read(0).mode == "L" else 3
    return 1 if data.name in ("digits", "mnist", "fashion_mnist") else 3
