"""Convolutions of small images with large weights as matrix products, where these are faster than torch's own."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.memory_layout import channel_sums
from gan.models.precision import full_precision, is_autocast

Convolution: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
Layer: TypeAlias = Convolution | nn.Linear
# Entries of a weight for each position of the batch's smaller images, from which on a product is faster: for the weight's
# gradient that is so in the last two layers of D and the first two convolutions of G, for the output and the input's gradient
# in the last two of D and the first of G (batch 64, the paper's networks). See docs/speed.md.
_LARGE_FOR_WEIGHT_GRADIENT = 100
_LARGE = 400


class ConvolutionArguments(NamedTuple):
    """The arguments that torch.convolution and its backward pass take after input, weight and bias."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def arguments_of(layer: Convolution) -> ConvolutionArguments:
    """Return the arguments of a layer whose padding is given in numbers."""
    assert not isinstance(layer.padding, str)
    return ConvolutionArguments(layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)


def apply_layer(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of ``layer`` for ``x``, with ``weight`` and ``bias`` in place of its own."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if _computes_in_bf16(x) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        x, arguments = pad_beyond_half(x, weight, arguments_of(layer))
        if arguments.padding != layer.padding:
            return F.conv2d(x, weight, bias, layer.stride, arguments.padding, layer.dilation, layer.groups)
        if _entries_per_position(x, weight, arguments) >= _LARGE_FOR_WEIGHT_GRADIENT:
            with full_precision(x.device.type):
                rounded = [t if t is None else t.to(torch.bfloat16) for t in (x, weight, bias)]
                return cast(Tensor, _ConvolutionByProduct.apply(*rounded, arguments))
    if isinstance(layer, nn.Conv2d):
        return cast(Tensor, layer._conv_forward(x, weight, bias))
    assert not isinstance(layer.padding, str)
    return F.conv_transpose2d(x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)


class FastConv2d(nn.Conv2d):
    """nn.Conv2d with the gradients of this module."""

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


class FastConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with the gradients of this module. It takes no output size."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return apply_layer(self, x, self.weight, self.bias)


class _ConvolutionByProduct(torch.autograd.Function):
    """``convolve`` of bf16 tensors, with ``convolution_gradients`` as its backward pass.

    For a second derivative, autograd differentiates torch's own convolution instead.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvolutionArguments) -> Tensor:
        context.save_for_backward(x, weight, bias)
        context.arguments = arguments
        return convolve(x, weight, bias, arguments)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = context.saved_tensors
        needed = context.needs_input_grad[:3]
        if torch.is_grad_enabled():
            output = torch.convolution(x, weight, bias, *context.arguments)
            return (*differentiable_gradients(output, (x, weight, bias), needed, gradient), None)
        return (*convolution_gradients(gradient, x, weight, context.arguments, needed), None)


def pad_beyond_half(x: Tensor, weight: Tensor, arguments: ConvolutionArguments) -> tuple[Tensor, ConvolutionArguments]:
    """Return ``x`` and ``arguments`` of the same convolution, whose padding is at most half the kernel if it is in bf16 on a CPU.

    oneDNN takes up to eight times as long for a weight's gradient where an output pixel sees padding alone, as with a kernel of
    3 and a padding of 2. Zeros around the input take the place of the padding beyond half.
    """
    excess = [max(0, p - (k - 1) // 2) for p, k in zip(arguments.padding, weight.shape[2:], strict=True)]
    if arguments.transposed or not any(excess) or max(*arguments.stride, *arguments.dilation) > 1 or not _computes_in_bf16(x):
        return x, arguments
    down, right = excess
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, right, right, down, down)).permute(0, 3, 1, 2)  # stored channels last
    return padded, arguments._replace(padding=tuple(p - e for p, e in zip(arguments.padding, excess, strict=True)))


def differentiable_gradients(
    output: Tensor, inputs: Sequence[Tensor | None], needed: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """Return autograd's own gradients of ``inputs``, which can be differentiated again; None for those not ``needed``."""
    wanted = [t for t, need in zip(inputs, needed, strict=True) if t is not None and need]
    found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=True))
    return [next(found) if need else None for need in needed]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvolutionArguments) -> Tensor:
    """Return torch.convolution, as matrix products where that is faster. To be differentiated by ``convolution_gradients``."""
    if not (_computes_in_bf16(x) and _entries_per_position(x, weight, arguments) >= _LARGE):
        return torch.convolution(x, weight, bias, *arguments)
    sizes = [_size(x.shape[2 + d], weight.shape[2 + d], d, arguments) for d in (0, 1)]
    output = (_spread if arguments.transposed else _gathered)(x, weight, sizes, arguments)
    return output if bias is None else output.add_(bias.view(-1, 1, 1))


def convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, arguments: ConvolutionArguments, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input, weight and bias, or None for those that are not ``needed``.

    torch computes the bias's gradient only together with the weight's. The weight's is the product of one tensor's pixels with
    the patches of the other that the kernel sees; oneDNN takes up to four times as long where the weight is large and the
    images are small.
    """
    need_x, need_weight, need_bias = needed
    size = _entries_per_position(x, weight, arguments) if _computes_in_bf16(x) else 0.0
    x_by_product, weight_by_product = size >= _LARGE, size >= _LARGE_FOR_WEIGHT_GRADIENT
    by_torch = need_weight and not weight_by_product
    torchs = [need_x and not x_by_product, by_torch, need_bias and by_torch]
    outputs = weight.shape[1] * arguments.groups if arguments.transposed else len(weight)
    g_x, g_weight, g_bias = None, None, None
    if any(torchs):
        g_x, g_weight, g_bias = torch.ops.aten.convolution_backward(gradient, x, weight, [outputs], *arguments, torchs)
    if need_x and x_by_product:
        product = _gathered if arguments.transposed else _spread
        g_x = product(gradient, weight, x.shape[2:], arguments)
    if need_weight and weight_by_product:
        g_weight = _weight_gradient(gradient, x, weight, arguments)
    if need_bias and g_bias is None:
        g_bias = channel_sums(gradient, gradient.dtype)
    return g_x, g_weight, g_bias


def _computes_in_bf16(x: Tensor) -> bool:
    """Return whether a convolution of ``x``, a batch of images, is one in bf16 on a CPU."""
    if x.device.type != "cpu" or x.dim() != 4 or not x.numel():
        return False
    return x.dtype == torch.bfloat16 or (is_autocast("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)


def _entries_per_position(x: Tensor, weight: Tensor, arguments: ConvolutionArguments) -> float:
    """Return the entries of ``weight`` for each position of the batch's smaller images; 0 where no product is written for it."""
    if (
        arguments.groups > 1
        or max(arguments.dilation) > 1
        or any(k < s for k, s in zip(weight.shape[2:], arguments.stride, strict=True))
    ):
        return 0
    shrunk = 1 if arguments.transposed else arguments.stride[0] * arguments.stride[1]
    return weight.numel() / (x.numel() // x.shape[1] / shrunk)


def _size(size: int, kernel: int, d: int, arguments: ConvolutionArguments) -> int:
    """Return the output's size in dimension ``d`` (0 or 1) for an input's ``size``, without dilation."""
    stride, padding = arguments.stride[d], arguments.padding[d]
    if arguments.transposed:
        return (size - 1) * stride - 2 * padding + kernel + arguments.output_padding[d]
    return (size + 2 * padding - kernel) // stride + 1


def _gathered(large: Tensor, weight: Tensor, places: Sequence[int], arguments: ConvolutionArguments) -> Tensor:
    """Return the convolution of ``large`` (B, C, ...) with ``weight`` (O, C, kernel) at ``places``, stored channels last."""
    patches = _patches(large, weight.shape[2:], places, arguments)
    output = _channels_last((len(large), len(weight), *places), large)
    torch.mm(patches, weight.permute(0, 2, 3, 1).flatten(1).T, out=output.permute(0, 2, 3, 1).flatten(0, 2))
    return output


def _spread(small: Tensor, weight: Tensor, sizes: Sequence[int], arguments: ConvolutionArguments) -> Tensor:
    """Return the transposed convolution of ``small`` (B, C, ...) with ``weight`` (C, O, kernel): (B, O, *sizes), channels last.

    With stride s, each s-th output pixel in a row sees the same taps of the kernel, at consecutive input pixels. So each of the
    s x s kinds of pixels is one product.
    """
    output = _channels_last((len(small), weight.shape[1], *sizes), small)
    taps = weight.permute(2, 3, 0, 1)
    lists = [[_taps(first, weight.shape[2 + d], d, arguments) for first in range(arguments.stride[d])] for d in (0, 1)]
    before = [max(0, *(-start for _, start in kinds)) for kinds in lists]
    counts = [-(-size // stride) for size, stride in zip(sizes, arguments.stride, strict=True)]
    after = [
        max(0, *(count + len(seen) + start - 1 - small.shape[2 + d] for seen, start in lists[d]))
        for d, count in enumerate(counts)
    ]
    padded = F.pad(small.permute(0, 2, 3, 1), (0, 0, before[1], after[1], before[0], after[0]))
    batch, down, right, channel = padded.stride()
    for row, (rows, top) in enumerate(lists[0]):
        for column, (columns, left) in enumerate(lists[1]):
            target = output.permute(0, 2, 3, 1)[:, row :: arguments.stride[0], column :: arguments.stride[1]]
            shape = (*target.shape[:3], len(rows), len(columns), small.shape[1])
            start = (top + before[0]) * down + (left + before[1]) * right
            patches = padded.as_strided(shape, (batch, down, right, down, right, channel), start)
            kernel = torch.cat([taps[r, c] for r in rows for c in columns])  # indexing by lists takes seven times as long
            target.copy_((patches.reshape(-1, len(kernel)) @ kernel).view(target.shape))
    return output


def _channels_last(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _taps(first: int, kernel: int, d: int, arguments: ConvolutionArguments) -> tuple[list[int], int]:
    """Return the taps that output pixels first, first + stride, ... see in dimension ``d``, and where the first of them sees.

    The taps are in the order of the input pixels; the place is relative to input pixel 0.
    """
    stride, padding = arguments.stride[d], arguments.padding[d]
    seen = list(range((first + padding) % stride, kernel, stride))[::-1]
    return seen, (first + padding - seen[0]) // stride


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, arguments: ConvolutionArguments) -> Tensor:
    """Return the gradient of ``weight``, stored channels last."""
    small, large = (x, gradient) if arguments.transposed else (gradient, x)
    patches = _patches(large, weight.shape[2:], small.shape[2:], arguments)  # B H W of small, kernel and channels of large
    pixels = small.permute(0, 2, 3, 1).flatten(0, 2)
    kernel = (pixels.T @ patches).view(small.shape[1], *weight.shape[2:], large.shape[1])
    return kernel.permute(0, 3, 1, 2)


def _patches(images: Tensor, kernel: Sequence[int], places: Sequence[int], arguments: ConvolutionArguments) -> Tensor:
    """Return what the kernel sees of ``images`` (B, C, H, W) at each of the ``places``: (B places, kernel C)."""
    rows, columns = arguments.padding
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))  # B H W C
    batch, down, right, channel = padded.stride()
    shape = (len(images), *places, *kernel, images.shape[1])
    strides = (batch, down * arguments.stride[0], right * arguments.stride[1], down, right, channel)
    return padded.as_strided(shape, strides).reshape(len(images) * places[0] * places[1], -1)
