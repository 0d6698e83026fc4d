"""Decode batches of images ahead of their use, in worker processes."""

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gan.data.decoding import Pixels
from gan.data.worker_pool import compute_batches
from gan.utils.errors import UserError

if TYPE_CHECKING:
    from gan.data.datasets import ImageDataset

MOST_NAMED = 100  # damaged images that one message names


class PixelsOrMistake:
    """The pixels of an image by its index, or the message of the UserError, as text, if it cannot be decoded."""

    def __init__(self, images: "ImageDataset") -> None:
        self.images = images

    def __call__(self, index: int) -> Pixels | str:
        try:
            return self.images.pixels(index)
        except UserError as error:
            return str(error)


def decode_batches(
    images: "ImageDataset",
    indices: Iterable[list[int]],
    *,
    workers: int,
    pin_memory: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[Tensor]:
    """Yield the images of each batch of ``indices``: (B, C, S, S) uint8, decoded ahead by ``workers`` processes.

    Closing the iterator stops the workers, and ``stopping()`` ends it early. Raises UserError for images that cannot be
    decoded, and for a worker that was killed or stands still.
    """
    for values in compute_batches(PixelsOrMistake(images), indices, workers, stopping):
        require_none([value for value in values if isinstance(value, str)], len(values))
        batch = torch.from_numpy(np.stack([value for value in values if not isinstance(value, str)]))
        yield batch.pin_memory() if pin_memory else batch


def require_none(mistakes: list[str], count: int) -> None:
    """Raise UserError if there are ``mistakes``, the messages about some of ``count`` images."""
    if len(mistakes) == 1:
        raise UserError(mistakes[0])
    if mistakes:
        more = f", and {len(mistakes) - MOST_NAMED:,} more" if len(mistakes) > MOST_NAMED else ""
        named = "; ".join(mistakes[:MOST_NAMED])
        raise UserError(f"{len(mistakes):,} of {count:,} images cannot be read. Repair or remove them: {named}{more}")
