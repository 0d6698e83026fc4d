"""Images of one size as uint8, and the batch stream keyed by the update's number."""

import time
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gan.data import pixel_cache
from gan.data.loader import _join, _leave_signals_to_the_main_process, _TextOfMistakes
from gan.data.sources import Bytes, Labels, Source, image_channels, is_archive, needs_decoding, open_source
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig

DECODING = 1  # of `to_pixels`: another number when it gives other pixels
_WORTH_KEEPING = 1.0  # seconds
_WORTH_WORKERS = 10_000  # images: starting processes takes as long as decoding some thousands
_READ_TOGETHER = 250  # images


def to_pixels(image: Image.Image, channels: int, size: int | None = None) -> Bytes:
    """In 1 or 3 channels: (C, H, W) uint8. A ``size`` scales the shorter side to it (Lanczos) and crops the centre."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = np.array(image, dtype=np.uint8)  # a copy: Pillow's own memory is read-only
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


class ImageDataset(Dataset[Tensor]):
    """A source's images, each (C, S, S) uint8, by index."""

    def __init__(self, source: Source, *, size: int, channels: int) -> None:
        self.source, self.size, self.channels = source, size, channels

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Bytes:
        return to_pixels(self.source.read(index), self.channels, self.size)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.read(index))

    @cached_property
    def fingerprint(self) -> str:
        """Names the images' content, number, channels and size."""
        return f"{self.source.fingerprint()[:32]}-{len(self)}x{self.channels}x{self.size}x{self.size}"

    def _batches(self, workers: int) -> Iterator[Tensor]:
        """All images in their order, some at a time."""
        loader = DataLoader(
            _TextOfMistakes(self),
            batch_size=_READ_TOGETHER,
            sampler=range(len(self)),
            num_workers=workers,
            collate_fn=_join,
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),  # its seed for the workers, which draw nothing, is not to come from the global one
        )
        for batch in loader:
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch

    @cached_property
    def labels(self) -> Labels:
        """The class of each image. Raises UserError where the source knows none."""
        return self.source.labels()

    def gigabytes(self) -> float:
        """Size of all images as uint8."""
        return len(self) * self.channels * self.size**2 / 1e9

    def to_memory(self, progress: Callable[[Iterator[int], int, str], Iterator[int]], workers: int = 0) -> Tensor:
        """All images decoded: (N, C, S, S) uint8, by so many ``workers`` where there are many images. Those of an archive,
        whose checksums tell its content, are kept in the cache when reading them took long."""
        shape = (len(self), self.channels, self.size, self.size)
        key = f"{self.fingerprint} {PIL.__version__} {DECODING}"
        archive = is_archive(self.source)
        if archive and (kept := pixel_cache.load(key, shape)) is not None:
            return torch.from_numpy(kept)
        began = time.monotonic()
        images = np.empty(shape, dtype=np.uint8)
        batches = self._batches(workers if len(self) >= _WORTH_WORKERS and needs_decoding(self.source) else 0)
        for index in progress(iter(range(len(self))), len(self), "reading images"):
            if index % _READ_TOGETHER == 0:
                batch = next(batches)
                images[index : index + len(batch)] = batch.numpy()
        if archive and time.monotonic() - began > _WORTH_KEEPING:
            pixel_cache.keep(key, images)
        return torch.from_numpy(images)


def load_images(data: DataConfig) -> ImageDataset:
    """The images that ``data`` names, at its size. Raises UserError as ``open_source`` does."""
    source = open_source(data)
    return ImageDataset(source, size=data.image_size, channels=image_channels(data, source))
