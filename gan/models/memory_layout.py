"""Sums over images, weights as matrices and flattened images, each computed in memory order."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Reorder: TypeAlias = Callable[[Tensor], Tensor]


def as_matrix(weight: Tensor, transposed: bool) -> tuple[Tensor, Reorder, Reorder]:
    """Return W as a matrix (outputs, rest), and two functions that reorder a vector (rest,).

    The first brings a vector from the order (inputs, kernel), in which v is stored, to that of the matrix; the second brings
    it back. Channels-last weights are not copied. A transposed convolution has its outputs in dimension 1.
    """
    if transposed:  # here the matrix has the order of v
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


# On a CPU, torch 2.14 takes ten times as long for these sums over a tensor of four dimensions as over the same memory seen as
# a matrix, so they flatten first.
def summed_image(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of images (B, C, H, W) over the batch as (H W, C), in ``dtype``."""
    channels = x.shape[1]
    if _is_channels_last(x):
        return _sum_of_rows(x.permute(0, 2, 3, 1).flatten(1), dtype).view(-1, channels)
    return _sum_of_rows(x.flatten(1), dtype).view(channels, -1).T


def channel_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of (B, C, H, W) over all but the channels, (C,), in ``dtype``."""
    if not _is_channels_last(x):
        return x.sum((0, 2, 3), dtype=dtype)
    return _sum_of_rows(x.permute(0, 2, 3, 1).flatten(0, 2), dtype)


def _sum_of_rows(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of ``rows`` (R, N) as (N,), in ``dtype``. Sums of bf16 on a CPU are rounded to bf16 at the end."""
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu":
        # torch would sum a float32 copy of the tensor, which takes eight times as long. A product accumulates in float32.
        return (rows.new_ones(1, len(rows)) @ rows)[0].to(dtype)
    return rows.sum(0, dtype=dtype)


class ChannelsLastGradient(torch.autograd.Function):
    """x (B, C, H, W) -> x, whose gradient is stored channels last, as that of a convolution is.

    The gradient of a flattened x is not. An activation's backward pass then meets two memory layouts, which takes eight times
    as long.
    """

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


class Flatten(nn.Flatten):
    """(B, C, H, W) -> (B, C H W), with a gradient that is stored channels last."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(ChannelsLastGradient.apply(input))


def subtract_image(x: Tensor, image: Tensor) -> None:
    """Subtract ``image`` (H W, C) from every image of ``x`` (B, C, H, W), in place."""
    if _is_channels_last(x):
        x.permute(0, 2, 3, 1).flatten(1).sub_(image.flatten())
    else:
        x.sub_(image.unflatten(0, x.shape[2:]).permute(2, 0, 1))
