"""Dropout whose mask is a function of seed, layer, step and position, so that resume is exact and processes do not matter."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gan.data.stream import BatchShard
from gan.utils import keyed_random

_LEVELS = 2**16  # each value takes 16 bits of the random words, so a share is rounded to a multiple of 2^-16


class KeyedDropout(nn.Module):
    """Dropout (Srivastava et al. 2014): zero each value with probability ``share``, and divide the others by 1 - share.

    In training mode it runs within ``dropping``. In evaluation mode it changes nothing.
    """

    def __init__(self, share: float, *, number: int) -> None:
        """``number`` tells this layer's masks from those of other layers."""
        super().__init__()
        self.share, self.number = share, number
        self.batch: tuple[BatchShard, int, int] | None = None  # shard, seed and step

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...), the images of one process in one step."""
        if not self.training:
            return x
        assert self.batch is not None, "within `dropping`"
        shard, seed, step = self.batch
        values = x[0].numel()

        def draw(start: int, count: int) -> NDArray[np.int32]:
            words = keyed_random.raw(seed, f"dropout {self.number}", start, count, -(-values // 4))
            return np.ascontiguousarray(words).view(np.uint16)[:, :values].astype(np.int32)

        kept = shard.draw(draw, step).view(x.shape).to(x.device, non_blocking=True) >= round(self.share * _LEVELS)
        return x * kept / (1 - self.share)


@contextmanager
def dropping(network: nn.Module, shard: BatchShard, *, seed: int, step: int) -> Iterator[None]:
    """Within the block, the masks of ``network`` are those of this process's images in ``step``."""
    layers = [module for module in network.modules() if isinstance(module, KeyedDropout)]
    for layer in layers:
        layer.batch = (shard, seed, step)
    try:
        yield
    finally:
        for layer in layers:
            layer.batch = None
