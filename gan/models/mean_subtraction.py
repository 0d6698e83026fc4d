"""Subtraction of a channel's mean over batch, positions and processes, with the backward pass of Eq. 10 of the MSN paper.

For the output of a convolution, the mean and its gradient come from linearity, without a pass over the output.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan.models.all_reduce import mean_over_processes, processes, sum_over_processes
from gan.models.convolution import ConvolutionArguments, convolution_gradients, convolve, differentiable_gradients
from gan.models.memory_layout import as_matrix, channel_sums, subtract_image, summed_image


class MeanSubtraction(torch.autograd.Function):
    """(h, m) -> (h - E[h] + m, E[h]); E[h] is not differentiated. Eq. 7, with the backward pass of Eq. 10.

    This takes two passes over h, and two over the gradient. It can be differentiated any number of times.
    """

    @staticmethod
    def forward(context: Any, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        mean = mean_over_processes(channel_sums(h, m.dtype) / (h.numel() // len(m)))
        context.mark_non_differentiable(mean)
        return h + (m - mean).to(h.dtype).view(1, -1, 1, 1), mean

    @staticmethod
    def backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        g_m = channel_sums(gradient, torch.promote_types(gradient.dtype, torch.float32))
        mean = mean_over_processes(g_m / (gradient.numel() // len(g_m)))
        return gradient - mean.to(gradient.dtype).view(1, -1, 1, 1), g_m


class RoundedWeight(NamedTuple):
    """A weight rounded to the precision of a convolution."""

    rounded: Tensor  # in the convolution's precision
    exact: Tensor  # the same numbers in the weight's own precision, for means


def round_weight(weight: Tensor, dtype: torch.dtype) -> RoundedWeight:
    """Return ``weight`` rounded to ``dtype``, without a gradient. In its own precision nothing is copied."""
    rounded = weight.detach().to(dtype)
    return RoundedWeight(rounded, rounded.to(weight.dtype))


class MeanSubtractedConvolution(torch.autograd.Function):
    """(x, W, W rounded, m) -> (W * x - E[W * x] + m, E[W * x]). Eq. 7, with the backward pass of Eq. 10.

    Only the first output is differentiated. E[W * x] is W applied to the mean patch (kernel, C): the input that each entry of
    the kernel sees, averaged over batch and positions. The mean patch is a linear function of the batch's mean image, so the
    only pass over a large tensor is that average.

    Backward: let G be the gradient of the output and s its mean per channel. By Eq. 10, the gradients are those of the
    convolution for G - s. The convolution's backward pass is linear, so there are two ways to compute them: subtract s from G
    first; or pass G and then subtract the contribution of s, which is one image for the gradient of x and an outer product
    with the mean patch for that of W. The cheaper way is taken: the first where G is much smaller than x (stride 2).

    ``groups`` are the sizes of consecutive groups of images. E is the mean of the groups' means: that of the batch for one group.

    For a second derivative, autograd differentiates the definition instead.
    """

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor,
        rounded: RoundedWeight,
        m: Tensor,
        arguments: ConvolutionArguments,
        groups: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        windows = _windows(len(x), x.shape[2:], weight.shape[2:], arguments, weight.dtype, weight.device)
        patch = windows @ mean_over_processes(_weighted_image(x, groups, weight.dtype))  # kernel C
        mean = apply_to_patch(rounded.exact, patch, arguments)
        context.save_for_backward(x, weight, *rounded, m, patch)
        context.arguments, context.groups = arguments, groups
        context.mark_non_differentiable(mean)
        return convolve(x, rounded.rounded, (m - mean).to(x.dtype), arguments), mean

    @staticmethod
    def backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rounded, exact, m, patch = context.saved_tensors
        arguments, groups, (need_x, need_weight, _, need_m, *_) = context.arguments, context.groups, context.needs_input_grad
        if torch.is_grad_enabled():
            output = _centred_by_definition(x, weight, m, arguments, groups)
            g_x, g_weight, g_m = differentiable_gradients(output, (x, weight, m), (need_x, need_weight, need_m), gradient)
            return g_x, g_weight, None, g_m, None, None
        values = gradient.numel() // gradient.shape[1] * processes()  # averaged in a channel's mean

        if centres_first(gradient, x):
            g_m = channel_sums(gradient, weight.dtype)
            s = sum_over_processes(g_m) / values
            parts = [part - (s * share).to(part.dtype).view(1, -1, 1, 1) for part, share in _shares(gradient, groups)]
            centred = parts[0] if len(parts) == 1 else torch.cat(parts)
            g_x, g_weight = convolution_gradients(centred, x, rounded, arguments, (need_x, need_weight, False))[:2]
            return g_x, g_weight, None, g_m, None, None
        g_x, g_weight, g_bias = convolution_gradients(gradient, x, rounded, arguments, (need_x, need_weight, need_weight))
        g_m = g_bias.to(weight.dtype) if g_bias is not None else channel_sums(gradient, weight.dtype)
        if g_x is not None:
            windows = _windows(len(x), x.shape[2:], weight.shape[2:], arguments, weight.dtype, weight.device)
            s = sum_over_processes(g_m) / processes()  # without the number of positions, by which the windows divide
            above = _patch_gradient(exact, s, arguments)  # kernel C
            image = windows.T @ above
            for part, share in _shares(g_x, groups):
                subtract_image(part, (image * share).to(part.dtype))
        if g_weight is not None:
            g_weight = g_weight.to(weight.dtype)
            # The outer product of s and the mean patch. The patch contains the divisor of s.
            taps = patch.unflatten(0, weight.shape[2:]).permute(2, 0, 1)  # C kernel-height kernel-width
            _grouped(g_weight, arguments).addcmul_(
                g_m.view(arguments.groups, -1, 1, 1, 1), taps.unflatten(0, (arguments.groups, 1, -1)), value=-1
            )
        return g_x, g_weight, None, g_m, None, None


def centres_first(gradient: Tensor, x: Tensor) -> bool:
    """Return whether subtracting a mean from ``gradient`` of the output is cheaper than correcting that of the input ``x``."""
    return 3 * gradient.numel() <= 2 * x.numel()


def _shares(x: Tensor, groups: tuple[int, ...]) -> list[tuple[Tensor, float]]:
    """Return each group of the batch ``x`` with the weight of its images in a mean: 1 where all groups have one size."""
    return [(part, len(x) / (len(groups) * len(part))) for part in x.split(groups)]


def _weighted_image(x: Tensor, groups: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the sum of a batch's images, each at its weight in a mean: (H W, C)."""
    if len(groups) == 1:
        return summed_image(x, dtype)
    return torch.stack([summed_image(part, dtype) * share for part, share in _shares(x, groups)]).sum(0)


def _centred_by_definition(
    x: Tensor, weight: Tensor, m: Tensor, arguments: ConvolutionArguments, groups: tuple[int, ...]
) -> Tensor:
    """Return Eq. 7 computed as it is written, which can be differentiated any number of times."""
    h = torch.convolution(x, weight.to(x.dtype), None, *arguments)
    means = [part.mean((0, 2, 3), dtype=m.dtype) for part in h.split(groups)]
    mean = mean_over_processes(means[0] if len(means) == 1 else torch.stack(means).mean(0))
    return (h - mean.view(1, -1, 1, 1) + m.view(1, -1, 1, 1)).to(x.dtype)


@lru_cache(64)
def _windows(
    batch: int, image: torch.Size, kernel: torch.Size, arguments: ConvolutionArguments, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the matrix (kernel, H W) that maps the sum of a batch's images (H W, C) to the mean patch (kernel, C).

    An entry is the share of output positions at which an entry of the kernel sees a position of the image, divided by the
    number of images.
    """
    rows, columns = (_window(image[d], kernel[d], d, arguments) for d in (0, 1))
    return (torch.kron(rows, columns) / batch).to(device, dtype)


def _window(size: int, kernel: int, d: int, arguments: ConvolutionArguments) -> Tensor:
    stride, padding, dilation = arguments.stride[d], arguments.padding[d], arguments.dilation[d]
    taps, places = torch.arange(kernel)[:, None], torch.arange(size)[None]
    if arguments.transposed:
        outputs = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + arguments.output_padding[d] + 1
        output = places * stride - padding + taps * dilation  # the output position that a place contributes to through a tap
        meets = (output >= 0) & (output < outputs)
    else:
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        start = places + padding - taps * dilation  # the first place of the window whose tap lies on the place
        meets = (start >= 0) & (start < outputs * stride) & (start % stride == 0)
    return meets.to(torch.float64) / outputs


def _grouped(weight: Tensor, arguments: ConvolutionArguments) -> Tensor:
    """Return a view of ``weight``: (groups, outputs of a group, inputs of a group, kernel height, kernel width)."""
    grouped: Tensor = weight.unflatten(0, (arguments.groups, -1))
    return grouped.transpose(1, 2) if arguments.transposed else grouped


def apply_to_patch(weight: Tensor, patch: Tensor, arguments: ConvolutionArguments) -> Tensor:
    """Return the outputs (outputs,) of the convolution for one ``patch`` (kernel, C)."""
    if arguments.groups == 1:
        matrix = as_matrix(weight, arguments.transposed)[0]
        return matrix @ (patch if _kernel_first(weight, arguments) else patch.T).flatten()
    one = arguments._replace(groups=1)
    parts = zip(weight.chunk(arguments.groups), patch.chunk(arguments.groups, 1), strict=True)
    return torch.cat([apply_to_patch(own, seen, one) for own, seen in parts])


def _patch_gradient(weight: Tensor, gradient: Tensor, arguments: ConvolutionArguments) -> Tensor:
    """Return the gradient of the patch in ``apply_to_patch``: (kernel, C)."""
    if arguments.groups == 1:
        above = as_matrix(weight, arguments.transposed)[0].T @ gradient
        taps = weight.shape[2:].numel()
        return above.view(taps, -1) if _kernel_first(weight, arguments) else above.view(-1, taps).T
    one = arguments._replace(groups=1)
    parts = zip(weight.chunk(arguments.groups), gradient.chunk(arguments.groups), strict=True)
    return torch.cat([_patch_gradient(own, above, one) for own, above in parts], 1)


def _kernel_first(weight: Tensor, arguments: ConvolutionArguments) -> bool:
    """Return whether the columns of ``as_matrix`` have the order (kernel, inputs) and not (inputs, kernel)."""
    return not arguments.transposed and not weight.is_contiguous()
