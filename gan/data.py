"""Data sets as uint8 images of one size, and the batch stream keyed by the update's number."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gan import keyed
from gan.config import Config, Data
from gan.errors import UserError

Bytes = NDArray[np.uint8]


class Source(Protocol):
    """Images by index, as Pillow reads them.

    ``fingerprint`` tells whether two sources hold the same images: by their pixels, a zip's by its checksums, a
    directory's by names and sizes alone, since reading it all could take hours.
    """

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image: ...
    def fingerprint(self) -> str: ...


class ArraySource:
    """Images that are already in memory: uint8, (N, H, W) or (N, H, W, C)."""

    def __init__(self, images: Bytes) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.images.shape).encode() + np.ascontiguousarray(self.images).tobytes()).hexdigest()


class FolderSource:
    """The image files of a directory tree, by name, in the order of their paths. Class folders are just folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = (path.relative_to(root).as_posix() for path in _walk(root))
        self.names = sorted(filter(_is_image_name, names))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        path = self.root / self.names[index]
        try:
            return _decode(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None

    def fingerprint(self) -> str:
        sizes = ((self.root / name).stat().st_size for name in self.names)
        return _digest(f"{name}\0{size}" for name, size in zip(self.names, sizes, strict=True))


class ZipSource:
    """The image files of a .zip archive, read in place, in the order of their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None
        try:
            entries = [e for e in self._archive().infolist() if not e.is_dir() and _is_image_name(e.filename)]
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"data.path={path}: not a .zip archive that can be read ({error}).") from None
        self.entries = sorted(entries, key=lambda entry: entry.filename)

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _archive(self) -> zipfile.ZipFile:
        # A worker process must not share the file position of the one that it was forked from.
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), zipfile.ZipFile(self.path))
        return self._open[1]

    def read(self, index: int) -> Image.Image:
        entry = self.entries[index]
        where = f"{self.path}: {entry.filename}"
        try:
            content = self._archive().read(entry)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{where}: cannot be read ({error}).") from None
        return _decode(content, where)

    def fingerprint(self) -> str:
        return _digest(f"{e.filename}\0{e.file_size}\0{e.CRC}" for e in self.entries)


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root):
        for name in files:
            yield Path(folder) / name


@lru_cache(1)
def _image_endings() -> frozenset[str]:
    return frozenset(Image.registered_extensions())


def _is_image_name(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in _image_endings() and not path.name.startswith(".") and "__MACOSX" not in path.parts


def _digest(lines: Iterator[str]) -> str:
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def _decode(content: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(BytesIO(content))
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise UserError(f"{where}: not an image in any format that Pillow reads. Mend or remove it.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: a damaged image ({error}). Mend or remove it.") from None


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _fit(image: Image.Image, size: int, channels: int) -> Bytes:
    """Scaled so that the shorter side is ``size`` (Lanczos), centre-cropped, in 1 or 3 channels: (C, H, W) uint8."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = np.array(image, dtype=np.uint8)  # a copy: Pillow's own memory is read-only
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _digits() -> Bytes:
    """scikit-learn's 1,797 digits of 8x8 pixels with values 0 to 16 (UCI optical recognition, test part)."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    return np.asarray(np.rint(load_digits().images * (255 / 16)), dtype=np.uint8)


def _torchvision(data: Data) -> Bytes:
    """The images of a data set that torchvision knows: downloaded and checked where they are not there yet."""
    from torchvision import datasets

    root, train = Path(data.path or f"data/{data.name}"), data.split == "train"
    makers: dict[str, tuple[Callable[[], Any], str]] = {
        "mnist": (lambda: datasets.MNIST(root, train, download=True), "MNIST/raw/*-ubyte (four files)"),
        "fashion_mnist": (lambda: datasets.FashionMNIST(root, train, download=True), "FashionMNIST/raw/*-ubyte (four files)"),
        "cifar10": (lambda: datasets.CIFAR10(root, train, download=True), "cifar-10-python.tar.gz"),
        "cifar100": (lambda: datasets.CIFAR100(root, train, download=True), "cifar-100-python.tar.gz"),
        "svhn": (lambda: datasets.SVHN(root, data.split, download=True), f"{data.split}_32x32.mat"),
    }  # fmt: skip
    make, file = makers[data.name]
    try:
        images = np.asarray(make().data)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision's "not found or corrupted" is a RuntimeError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.name={data.name}: not found at {root.resolve()} and could not be downloaded ({reason})."
            f" Put {file} there yourself, or set data.path to the folder that holds it."
        ) from None
    return images.transpose(0, 2, 3, 1) if data.name == "svhn" else images


def open_source(data: Data) -> Source:
    """The images that ``data`` names. Raises UserError when there are none, or they cannot be had."""
    if data.name == "digits":
        return ArraySource(_digits())
    if data.name != "folder":
        return ArraySource(_torchvision(data))
    assert data.path is not None
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"data.path={path}: no such folder or .zip (looked at {path.resolve()}).")
    source: Source = FolderSource(path) if path.is_dir() else ZipSource(path)
    if not len(source):
        raise UserError(f"data.path={path}: holds no images. Expected files such as .png or .jpg, in class folders or not.")
    return source


def image_channels(data: Data) -> int:
    """Channels of the images that ``data`` names, without reading more of it than needed."""
    if data.channels is not None:
        return data.channels
    if data.name == "folder":
        return 1 if _is_grey(open_source(data).read(0)) else 3
    return 1 if data.name in ("digits", "mnist", "fashion_mnist") else 3


class Images(Dataset[Tensor]):
    """A source's images, each (C, S, S) uint8, by index."""

    def __init__(self, source: Source, *, size: int, channels: int) -> None:
        self.source, self.size, self.channels = source, size, channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(_fit(self.source.read(index), self.size, self.channels))

    @cached_property
    def fingerprint(self) -> str:
        """Names the images' content, number, channels and size."""
        return f"{self.source.fingerprint()[:32]}-{len(self)}x{self.channels}x{self.size}x{self.size}"

    def gigabytes(self) -> float:
        """Size of all images as uint8."""
        return len(self) * self.channels * self.size**2 / 1e9

    def to_memory(self, progress: Callable[[Iterator[int], int, str], Iterator[int]]) -> Tensor:
        """All images decoded: (N, C, S, S) uint8."""
        images = torch.empty((len(self), self.channels, self.size, self.size), dtype=torch.uint8)
        for index in progress(iter(range(len(self))), len(self), "reading images"):
            images[index] = self[index]
        return images


def load_images(data: Data) -> Images:
    """The images that ``data`` names, at its size. Raises UserError as ``open_source`` does."""
    return Images(open_source(data), size=data.image_size, channels=image_channels(data))


class Share:
    """Which part of a global batch is this process's: the same part of every micro-batch.

    Position p of an update counts real images (or fakes) over the whole run, so that what is drawn for p depends on
    neither the number of processes nor the micro-batches. With mixing norms a micro-batch over all processes holds the
    positions that it would hold in one process.
    """

    def __init__(self, *, batch_size: int, parts: int, rank: int, processes: int) -> None:
        assert batch_size % (parts * processes) == 0
        self.batch_size, self.parts = batch_size, parts
        self.width = batch_size // (parts * processes)  # images of this process in one micro-batch
        self.rank = rank
        self.local_size = self.width * parts

    @classmethod
    def of(cls, config: Config, *, rank: int, processes: int) -> "Share":
        """The share of process ``rank`` in a run with ``config``."""
        training = config.training
        return cls(batch_size=training.batch_size, parts=training.accumulation, rank=rank, processes=processes)

    def starts(self, update: int) -> list[int]:
        """First position of each micro-batch's share in a global ``update``; each share is ``width`` long."""
        part_size = self.batch_size // self.parts
        return [update * self.batch_size + part * part_size + self.rank * self.width for part in range(self.parts)]

    def positions(self, update: int) -> NDArray[np.int64]:
        return np.concatenate([np.arange(start, start + self.width) for start in self.starts(update)])

    def draw(self, draw: Callable[[int, int], NDArray[Any]], update: int) -> Tensor:
        """``draw(start, count)`` for this process's positions: (local_size, ...)."""
        return torch.from_numpy(np.concatenate([draw(start, self.width) for start in self.starts(update)]))


class BatchStream:
    """Real images for each D update: a function of (seed, update), in memory or streamed alike."""

    def __init__(self, images: Images, memory: Tensor | None, *, config: Config, share: Share, device: torch.device) -> None:
        """``memory`` holds all ``images``, on any device; None streams them with ``config.data.workers`` processes."""
        self.images, self.memory, self.config, self.share, self.device = images, memory, config, share, device
        self._epochs: dict[int, NDArray[Any]] = {}
        self._loader: Iterator[Tensor] | None = None
        self._next_update = -1

    def _indices(self, update: int) -> NDArray[np.int64]:
        """Which image stands at each of this process's positions: every epoch is one permutation of all."""
        positions, size = self.share.positions(update), len(self.images)
        epochs = positions // size
        orders = {}
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            order = self._epochs.get(epoch)
            orders[epoch] = keyed.permutation(self.config.seed, "order", epoch, size) if order is None else order
        self._epochs = orders
        return np.array([orders[int(e)][p % size] for e, p in zip(epochs, positions, strict=True)], dtype=np.int64)

    def batch(self, update: int) -> Tensor:
        """This process's real images of a D ``update``: (local batch, C, S, S) float32 in [-1, 1], on the device."""
        if self.memory is not None:
            images = self.memory[torch.from_numpy(self._indices(update)).to(self.memory.device)]
        else:
            images = self._streamed(update)
        images = images.to(self.device, non_blocking=True)
        if self.config.data.flip:
            bits = self.share.draw(lambda start, n: keyed.raw(self.config.seed, "flip", start, n, 1) >> np.uint64(63), update)
            flip = bits.view(-1, 1, 1, 1).to(self.device, torch.bool)
            images = torch.where(flip, images.flip(3), images)
        return images.float() / 127.5 - 1

    def _streamed(self, update: int) -> Tensor:
        if self._loader is None or update != self._next_update:
            loader = DataLoader(
                self.images,
                batch_sampler=_UpdatesFrom(self, update),
                num_workers=self.config.data.workers,
                pin_memory=self.device.type == "cuda",
            )
            self._loader = iter(loader)
        self._next_update = update + 1
        try:
            return next(self._loader)
        except UserError as error:
            # A worker's traceback comes wrapped around what its last line says.
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("gan.errors.UserError: ")) from None


class _UpdatesFrom:
    """Batches of indices for a DataLoader, from one update on, without end."""

    def __init__(self, stream: BatchStream, first: int) -> None:
        self.stream, self.first = stream, first

    def __iter__(self) -> Iterator[list[int]]:
        update = self.first
        while True:
            yield self.stream._indices(update).tolist()
            update += 1
