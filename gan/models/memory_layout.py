"""Sums over images and weights as matrices, each in the order in which memory has them."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Reorder: TypeAlias = Callable[[Tensor], Tensor]


def as_matrix(weight: Tensor, transposed: bool) -> tuple[Tensor, Reorder, Reorder]:
    """W as (outputs, rest), without a copy where it is channels last; and what brings a vector over the rest from (inputs,
    kernel), the order in which v is kept, into the matrix's order, and back.

    A transposed convolution keeps its outputs in dimension 1.
    """
    if transposed:  # its rest is in the order of v in memory, too
        return weight.permute(0, 2, 3, 1).flatten(0, 2).T, _as_it_is, _as_it_is
    if weight.dim() == 2 or weight.is_contiguous():
        return weight.flatten(1), _as_it_is, _as_it_is
    inputs, height, width = weight.shape[1:]
    return (
        weight.permute(0, 2, 3, 1).flatten(1),
        lambda v: v.view(inputs, height, width).permute(1, 2, 0).flatten(),
        lambda v: v.view(height, width, inputs).permute(2, 0, 1).flatten(),
    )


def _as_it_is(vector: Tensor) -> Tensor:
    return vector


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


# Sums over images, and over all but the channels, take torch ten times as long for four dimensions as for the two that the
# memory has (CPU, 2.14), so these flatten first.
def summed_image(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) to (H W, C), in ``dtype``."""
    channels = x.shape[1]
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).flatten(1).sum(0, dtype=dtype).view(-1, channels)
    return x.flatten(1).sum(0, dtype=dtype).view(channels, -1).T


def channel_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) to (C,), in ``dtype``."""
    if not _is_channels_last(x):
        return x.sum((0, 2, 3), dtype=dtype)
    return x.permute(0, 2, 3, 1).flatten(0, 2).sum(0, dtype=dtype)


def subtract_image(x: Tensor, image: Tensor) -> None:
    """Takes ``image`` (H W, C) from every image of ``x`` (B, C, H, W), in place."""
    if _is_channels_last(x):
        x.permute(0, 2, 3, 1).flatten(1).sub_(image.flatten())
    else:
        x.sub_(image.unflatten(0, x.shape[2:]).permute(2, 0, 1))
