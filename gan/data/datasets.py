"""Images of one size as uint8, and the batch stream keyed by the update's number."""

import signal
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gan.data import pixel_cache
from gan.data.sources import Bytes, Labels, Source, image_channels, is_archive, needs_decoding, open_source
from gan.utils import keyed_random
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig, RunConfig

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


class BatchShard:
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
    def of(cls, config: RunConfig, *, rank: int, processes: int) -> "BatchShard":
        """The share of process ``rank`` in a run with ``config``."""
        return cls(batch_size=config.training.batch_size, parts=config.micro_batches, rank=rank, processes=processes)

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

    def __init__(
        self, images: ImageDataset, memory: Tensor | None, *, config: RunConfig, share: BatchShard, device: torch.device
    ) -> None:
        """``memory`` holds all ``images``, on any device; None streams them with ``config.data.workers`` processes."""
        self.images, self.memory, self.config, self.share, self.device = images, memory, config, share, device
        self._epochs: dict[int, NDArray[Any]] = {}
        self._loader: Iterator[Tensor | str] | None = None
        self._next_update = -1

    def _indices(self, update: int) -> NDArray[np.int64]:
        """Which image stands at each of this process's positions: every epoch is one permutation of all."""
        positions, size = self.share.positions(update), len(self.images)
        epochs = positions // size
        orders = {}
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            order = self._epochs.get(epoch)
            orders[epoch] = keyed_random.permutation(self.config.seed, "order", epoch, size) if order is None else order
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
            bits = self.share.draw(
                lambda start, n: keyed_random.raw(self.config.seed, "flip", start, n, 1) >> np.uint64(63), update
            )
            flip = bits.view(-1, 1, 1, 1).to(self.device, torch.bool)
            images = torch.where(flip, images.flip(3), images)
        return images.float() / 127.5 - 1

    def labels(self, update: int) -> Tensor:
        """The classes of the images of ``batch(update)``: (local batch,) int64, on the device."""
        numbers = self.images.labels.numbers[self._indices(update)]
        return torch.from_numpy(numbers).to(self.device, non_blocking=True)

    def _streamed(self, update: int) -> Tensor:
        if self._loader is None or update != self._next_update:
            loader = DataLoader(
                _TextOfMistakes(self.images),
                batch_sampler=_UpdatesFrom(self, update),
                num_workers=self.config.data.workers,
                pin_memory=self.device.type == "cuda",
                collate_fn=_join,
                worker_init_fn=_leave_signals_to_the_main_process,
            )
            self._loader = iter(loader)
        self._next_update = update + 1
        batch = next(self._loader)
        if isinstance(batch, str):
            self.close()
            raise UserError(batch)
        return batch

    def close(self) -> None:
        """Ends the processes that decode images, if there are any."""
        self._loader = None  # the iterator's own clean-up stops them


_WORKER_GRACE = 40  # seconds between SIGTERM and a worker's end; a run is to save and leave within 30


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """A scheduler's SIGTERM, or Ctrl-C, reaches all processes of a run; the step that it should finish needs the workers.

    They live on for a while only, since multiprocessing ends a worker that was left behind by SIGTERM too, and waits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_WORKER_GRACE))


class _TextOfMistakes(Dataset[Tensor | str]):
    """Images, or what a UserError says of one: as a value, since a DataLoader that passes an exception on wraps it in a
    traceback, and is then held by a cycle and never stops its workers cleanly."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.images[index]
        except UserError as error:
            return str(error)


def _join(items: list[Tensor | str]) -> Tensor | str:
    mistakes = [item for item in items if isinstance(item, str)]
    return mistakes[0] if mistakes else torch.stack([item for item in items if isinstance(item, Tensor)])


class _UpdatesFrom:
    """Batches of indices for a DataLoader, from one update on, without end."""

    def __init__(self, stream: BatchStream, first: int) -> None:
        self.stream, self.first = stream, first

    def __iter__(self) -> Iterator[list[int]]:
        update = self.first
        while True:
            yield self.stream._indices(update).tolist()
            update += 1
