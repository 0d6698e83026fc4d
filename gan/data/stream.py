"""Batches of real images as a function of the seed and the number of the update."""

from collections.abc import Callable, Generator, Iterable
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan.data.datasets import ImageDataset
from gan.data.loader import decode_batches
from gan.utils import keyed_random
from gan.utils.devices import copy_to
from gan.utils.settings import RunConfig


class BatchShard:
    """This rank's slice of each global batch, which is the same slice of every micro-batch.

    Positions number the images of the whole run: update n has the positions from n * batch_size. What is drawn for a
    position therefore depends on neither the number of processes nor that of micro-batches, and under a norm that mixes
    images, a micro-batch over all processes consists of the same positions as in a single process.
    """

    def __init__(self, *, batch_size: int, micro_batches: int, rank: int, processes: int) -> None:
        assert batch_size % (micro_batches * processes) == 0
        self.batch_size, self.micro_batches, self.rank = batch_size, micro_batches, rank
        self.width = batch_size // (micro_batches * processes)  # images of this rank in one micro-batch
        self.local_size = self.width * micro_batches  # images of this rank in one update

    @classmethod
    def of(cls, config: RunConfig, *, rank: int, processes: int) -> "BatchShard":
        """Return the shard of process ``rank`` in a run with ``config``."""
        batch_size, micro_batches = config.training.batch_size, config.micro_batches
        return cls(batch_size=batch_size, micro_batches=micro_batches, rank=rank, processes=processes)

    def starts(self, update: int) -> list[int]:
        """Return the first position of this rank in each micro-batch of ``update``; ``width`` positions follow each."""
        size = self.batch_size // self.micro_batches
        first = update * self.batch_size + self.rank * self.width
        return [first + part * size for part in range(self.micro_batches)]

    def positions(self, update: int) -> NDArray[np.int64]:
        """Return this rank's positions in ``update``: (local_size,)."""
        return np.concatenate([np.arange(start, start + self.width) for start in self.starts(update)])

    def draw(self, draw: Callable[[int, int], NDArray[Any]], update: int) -> Tensor:
        """Return what ``draw(start, count)`` gives for this rank's positions in ``update``: (local_size, ...)."""
        return torch.from_numpy(np.concatenate([draw(start, self.width) for start in self.starts(update)]))


class BatchStream:
    """This rank's real images for each D update: a function of (seed, update), whether cached in memory or streamed."""

    def __init__(
        self, images: ImageDataset, pixels: Tensor | None, *, config: RunConfig, shard: BatchShard, device: torch.device
    ) -> None:
        """``pixels`` are all ``images`` decoded, (N, C, S, S) uint8, on any device; None decodes each batch when it is needed."""
        self.images, self.pixels = images, pixels
        self.config, self.shard, self.device = config, shard, device
        self._batches: Generator[Tensor] | None = None  # of a stream without `pixels`
        self._ready: dict[int, Tensor] = {}  # images of updates that have been decoded and not used
        self._stopping: Callable[[], bool] = lambda: False
        self._next_update = 0  # that `_batches` gives
        self._orders: dict[int, NDArray[Any]] = {}  # permutation of each epoch that the last update took images from

    def _indices(self, update: int) -> NDArray[np.int64]:
        """Return the index of the image at each of this rank's positions: (local_size,). An epoch is one permutation."""
        positions, size = self.shard.positions(update), len(self.images)
        epochs = positions // size
        orders = {}
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            order = self._orders.get(epoch)
            orders[epoch] = keyed_random.permutation(self.config.seed, "order", epoch, size) if order is None else order
        self._orders = orders
        return np.array([orders[int(e)][p % size] for e, p in zip(epochs, positions, strict=True)], dtype=np.int64)

    def batch(self, update: int) -> Tensor:
        """Return this rank's real images of D ``update``: (local_size, C, S, S) float32 in [-1, 1], on the device."""
        if self.pixels is not None:
            images = self.pixels[copy_to(torch.from_numpy(self._indices(update)), self.pixels.device)]
        else:
            self.prepare([update])
            images = self._ready.pop(update)
        images = images.to(self.device, non_blocking=True)
        if self.config.data.crop_padding:
            images = self._cropped(images, update)
        if self.config.data.flip:
            flip = self.shard.draw(self._draw_flips, update).view(-1, 1, 1, 1)
            images = torch.where(copy_to(flip != 0, self.device), images.flip(3), images)
        return images.float() / 127.5 - 1

    def _draw_flips(self, start: int, count: int) -> NDArray[np.uint64]:
        """Draw one fair bit for each position: (count, 1)."""
        return keyed_random.raw(self.config.seed, "flip", start, count, 1) >> np.uint64(63)

    def _cropped(self, images: Tensor, update: int) -> Tensor:
        """Return ``images`` (B, C, S, S) uint8, each surrounded by black pixels and cut out at its own random position."""
        padding, size = self.config.data.crop_padding, images.shape[-1]

        def draw(start: int, count: int) -> NDArray[np.int64]:  # the rows and columns cut off before the crop: (count, 2)
            words = keyed_random.raw(self.config.seed, "crop", start, count, 2)
            return (words % np.uint64(2 * padding + 1)).astype(np.int64)

        first = copy_to(self.shard.draw(draw, update), self.device)
        kept = first[:, :, None] + torch.arange(size, device=self.device)  # B 2 S
        rows, columns = kept[:, 0, None, :, None], kept[:, 1, None, None, :]  # B 1 S 1, B 1 1 S
        padded = torch.nn.functional.pad(images, [padding] * 4)
        number, channel = (torch.arange(n, device=self.device) for n in images.shape[:2])
        return padded[number[:, None, None, None], channel[:, None, None], rows, columns]

    def labels(self, update: int) -> Tensor:
        """Return the class indices of the images of ``batch(update)``: (local_size,) int64, on the device."""
        labels = self.images.labels.class_indices[self._indices(update)]
        return copy_to(torch.from_numpy(labels), self.device)

    def prepare(self, updates: Iterable[int], stopping: Callable[[], bool] = lambda: False) -> None:
        """Wait for the images of ``updates``, which ``batch`` then has at hand. Return early when ``stopping()`` is true.

        Raises UserError for images that cannot be decoded, and for a worker process that was killed or stands still.
        """
        for update in updates if self.pixels is None else ():
            if update in self._ready:
                continue
            if self._batches is None or update != self._next_update:
                self.close()
                self._batches = self._start_decoding(update)
            self._stopping = stopping
            batch = next(self._batches, None)
            if batch is None:  # asked to stop
                self.close()
                return
            self._ready[update] = batch
            self._next_update = update + 1

    def _start_decoding(self, update: int) -> Generator[Tensor]:
        """Start workers that decode the updates in order, from ``update`` on."""
        indices = (self._indices(number).tolist() for number in count(update))
        return decode_batches(
            self.images,
            indices,
            workers=self.config.data.workers,
            pin_memory=self.device.type == "cuda",
            stopping=lambda: self._stopping(),
        )

    def close(self) -> None:
        """Stop the worker processes, if there are any."""
        if self._batches is not None:
            self._batches.close()
        self._batches, self._ready = None, {}
