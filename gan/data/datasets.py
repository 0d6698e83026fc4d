"""Images of one size as uint8, by index or all at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from gan.data import pixel_cache
from gan.data.decoding import Pixels
from gan.data.labels import Labels
from gan.data.loader import PixelsOrMistake, require_none
from gan.data.sources import Source, image_channels, is_archive, needs_decoding, open_source
from gan.data.worker_pool import compute_batches
from gan.utils.settings import DataConfig

DECODING = 3  # version of `decode` and `to_pixels`: increase it when the same file gives other pixels
_WORTH_CACHING = 1.0  # seconds of decoding from which on the pixels are cached
_WORTH_WORKERS = 10_000  # images: starting processes takes as long as decoding some thousands
_BATCH = 250  # images decoded at a time


def to_pixels(image: Image.Image, channels: int, size: int | None = None) -> Pixels:
    """Return ``image``, 8-bit grey or colour, in 1 or 3 ``channels``: (C, H, W) uint8.

    With a ``size``, the shorter side is scaled to it (Lanczos) and the centre is cropped: H = W = size.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = np.array(image, dtype=np.uint8)  # a copy, since Pillow's own memory is read-only
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


class ImageDataset(Dataset[Tensor]):
    """A source's images by index, each (C, S, S) uint8 with C = ``channels`` and S = ``size``."""

    def __init__(self, source: Source, *, size: int, channels: int) -> None:
        self.source, self.size, self.channels = source, size, channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.pixels(index))

    def pixels(self, index: int) -> Pixels:
        """Return one image. Raises UserError if it cannot be decoded."""
        return to_pixels(self.source.read(index), self.channels, self.size)

    @cached_property
    def fingerprint(self) -> str:
        """A name for these images, from their source's fingerprint, their number, channels and size."""
        return f"{self.source.fingerprint()[:32]}-{len(self)}x{self.channels}x{self.size}x{self.size}"

    @cached_property
    def labels(self) -> Labels:
        """The class of each image. Raises UserError for a source without classes."""
        return self.source.labels()

    def parts(self) -> list["ImageDataset"]:
        """Return the sets that this one consists of, each of one source."""
        return [self]

    def remarks(self) -> list[str]:
        """Return lines for the user of a command: what of a folder or zip was left out, and how its channels were chosen."""
        return list(dict.fromkeys(remark for part in self.parts() for remark in part.source.remarks))

    def file_times(self) -> str:
        """Return a name for the files that changes when one of them is written; "" where the fingerprint is of the content."""
        return "+".join(filter(None, (part.source.times()[:32] for part in self.parts())))

    def sampled_content(self) -> str:
        """Return a name for the content of the files, or of a part of many; "" where the fingerprint is of the content."""
        return "+".join(filter(None, (part.source.sample()[:32] for part in self.parts())))

    def gigabytes(self) -> float:
        """Return the size of all images as uint8, in 10^9 bytes."""
        return len(self) * self.channels * self.size**2 / 1e9

    def decode_all(self, progress: Callable[[Iterator[int], int, str], Iterator[int]], workers: int = 0) -> Tensor:
        """Decode all images: (N, C, S, S) uint8, in ``workers`` processes if there are many images.

        ``progress(indices, total, title)`` yields the indices and shows how far they are. If decoding an archive takes
        long, its pixels are cached: its fingerprint identifies its content. Raises UserError for an image that cannot be
        decoded.
        """
        shape = (len(self), self.channels, self.size, self.size)
        key = f"{self.fingerprint} {PIL.__version__} {DECODING}"
        archive = is_archive(self.source)
        if archive and (cached := pixel_cache.load(key, shape)) is not None:
            return torch.from_numpy(cached)
        began = time.monotonic()
        pixels = np.empty(shape, dtype=np.uint8)
        if len(self) < _WORTH_WORKERS or not needs_decoding(self.source):
            workers = 0
        slices = (list(range(start, min(start + _BATCH, len(self)))) for start in range(0, len(self), _BATCH))
        mistakes: list[str] = []
        with closing(compute_batches(PixelsOrMistake(self), slices, workers)) as batches:
            values: list[Pixels | str] = []
            for index in progress(iter(range(len(self))), len(self), "reading images"):
                values = values if index % _BATCH else next(batches)
                value = values[index % _BATCH]
                if isinstance(value, str):
                    mistakes.append(value)
                else:
                    pixels[index] = value
        require_none(mistakes, len(self))
        if archive and time.monotonic() - began > _WORTH_CACHING:
            pixel_cache.save(key, pixels)
        return torch.from_numpy(pixels)


def load_images(data: DataConfig) -> ImageDataset:
    """Open the images that ``data`` names, at its size. Raises UserError as ``open_source`` does."""
    source = open_source(data)
    return ImageDataset(source, size=data.image_size, channels=image_channels(data, source))
