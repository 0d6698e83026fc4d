"""Batches of real images as a function of the seed and the update's number."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from gan.data.datasets import ImageDataset
from gan.data.loader import _join, _leave_signals_to_the_main_process, _TextOfMistakes
from gan.utils import keyed_random
from gan.utils.errors import UserError
from gan.utils.settings import RunConfig


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


class _UpdatesFrom:
    """Batches of indices for a DataLoader, from one update on, without end."""

    def __init__(self, stream: BatchStream, first: int) -> None:
        self.stream, self.first = stream, first

    def __iter__(self) -> Iterator[list[int]]:
        update = self.first
        while True:
            yield self.stream._indices(update).tolist()
            update += 1
