"""Sources of images: a folder, a zip, scikit-learn's digits, or a data set that torchvision knows."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gan.data.decoding import Pixels
from gan.data.image_files import FolderSource, ZipSource
from gan.data.labels import Labels
from gan.data.torchvision_sets import load_published
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig

_LOOKED_AT = 1000  # images whose modes decide on the channels of a folder or zip


class Source(Protocol):
    """Images by index, in 8-bit grey or colour, and their classes if it knows them."""

    remarks: list[str]  # lines on what was left out or decided, for the user of a command

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """Read one image. Raises UserError if it cannot be read or decoded."""
        ...

    def is_grey(self, index: int) -> bool:
        """Return whether one image has no colour. Reads no more than is needed. Raises UserError as ``read``."""
        ...

    def fingerprint(self) -> str:
        """Return a name for these images that is quick to compute: two sources of one fingerprint count as the same.

        It is made from an array's pixels and a zip's checksums, but only from the names and sizes of a folder's files,
        since reading all of them could take hours.
        """
        ...

    def content(self, start: int = 0, end: int | None = None) -> str:
        """Return a name for the content of the images from ``start`` to ``end`` that changes with any of their bytes.

        Reads all of these files of a folder.
        """
        ...

    def times(self) -> str:
        """Return a name for the files that changes when one of them is written; "" where the fingerprint is of the content."""
        ...

    def sample(self) -> str:
        """Return a name for the content of files of up to some 100 MB in all; "" where the fingerprint is of the content."""
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
        self.remarks: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def is_grey(self, index: int) -> bool:
        return self.images.ndim == 3

    def fingerprint(self) -> str:
        return self.content()

    def content(self, start: int = 0, end: int | None = None) -> str:
        images = self.images[start:end]
        return hashlib.sha256(repr(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()

    def times(self) -> str:
        return ""

    sample = times

    def labels(self) -> Labels:
        return Labels(self.class_indices, tuple(map(str, range(self.classes))))


class Subset:
    """Some of the images of the source ``whole``, in the order of ``indices``."""

    def __init__(self, whole: Source, indices: NDArray[np.int64]) -> None:
        self.whole, self.indices, self.remarks = whole, indices, whole.remarks

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        return self.whole.read(int(self.indices[index]))

    def is_grey(self, index: int) -> bool:
        return self.whole.is_grey(int(self.indices[index]))

    def _name(self, name: str, start: int = 0, end: int | None = None) -> str:
        return hashlib.sha256(name.encode() + self.indices[start:end].tobytes()).hexdigest()

    def fingerprint(self) -> str:
        return self._name(self.whole.fingerprint())

    def content(self, start: int = 0, end: int | None = None) -> str:
        return self._name(self.whole.content(), start, end)

    def times(self) -> str:
        return self.whole.times()

    def sample(self) -> str:
        return self.whole.sample()

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
        others = "".join(f" ({remark.removeprefix(f'{path}: ')})" for remark in source.remarks)
        raise UserError(
            f"{path}: holds no images{others}. Expected files such as .png or .jpg, not hidden, in class folders or not."
        )
    return source


def image_channels(data: DataConfig, source: Source | None = None) -> int:
    """Return the number of channels of the images that ``data`` names, 1 or 3.

    A folder or zip has 3 if any image has colour, of all images or of 1,000 evenly spaced ones. ``source`` is the result of
    ``open_source(data)``, if the caller has it; otherwise a folder or zip is opened here. A decision that may surprise is added
    to the remarks of ``source``.
    """
    if data.channels is not None:
        return data.channels
    if data.name != "folder":
        return 1 if data.name in ("digits", "mnist", "fashion_mnist") else 3
    source = source or open_source(data)
    chosen = np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).astype(int)
    grey, unread = 0, []
    for index in map(int, chosen):
        try:
            is_grey = source.is_grey(index)
        except UserError as error:  # decoding will name all that cannot be read
            unread.append(error)
            continue
        if not is_grey:
            if grey:
                source.remarks.append(
                    f"{data.path}: image {index + 1} is in colour, the {grey:,} before it that were looked at are grey:"
                    " all are taken as colour. For grey images set data.channels=1."
                )
            return 3
        grey += 1
    if not grey and unread:
        raise unread[0]
    if grey < len(source):
        source.remarks.append(
            f"{data.path}: grey, as {grey:,} evenly spaced images of {len(source):,} are. For colour set data.channels=3."
        )
    return 1
