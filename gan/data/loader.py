"""Decode images in worker processes, through torch's DataLoader."""

import signal
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gan.utils.errors import UserError

_WORKER_GRACE = 40  # seconds from SIGTERM to a worker's end; a run saves and stops within 30


def decode_batches(
    images: Dataset[Tensor], indices: Iterable[list[int]], *, workers: int, pin_memory: bool = False
) -> Iterator[Tensor]:
    """Yield the images of each batch of ``indices``: (B, C, S, S) uint8, decoded ahead by ``workers`` processes.

    Closing the iterator stops the workers. Raises UserError for an image that cannot be decoded.
    """
    # A for statement keeps the DataLoader's iterator out of the traceback of an error, so that its workers stop at once.
    for batch in DataLoader(
        _ErrorAsText(images),
        batch_sampler=indices,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # seeds the workers, which draw nothing; the global generator is left alone
    ):
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch


class _ErrorAsText(Dataset[Tensor | str]):
    """Images by index, with the message of a UserError in place of an image that cannot be decoded.

    A DataLoader wraps an exception of a worker in a traceback, in a reference cycle that keeps its other workers alive.
    """

    def __init__(self, images: Dataset[Tensor]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.images[index]
        except UserError as error:
            return str(error)


def _collate(items: list[Tensor | str]) -> Tensor | str:
    """Stack the images, or return the first error message among ``items``."""
    errors = [item for item in items if isinstance(item, str)]
    return errors[0] if errors else torch.stack([item for item in items if isinstance(item, Tensor)])


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """Ignore SIGINT in a worker, and end it only some time after SIGTERM.

    A scheduler's SIGTERM and Ctrl-C reach all processes of a run, and the main process needs the workers to finish its
    step. They must not live on for good: multiprocessing, too, ends a remaining worker by SIGTERM, and then waits for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_WORKER_GRACE))
