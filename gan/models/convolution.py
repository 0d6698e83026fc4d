"""Convolutions, with the gradient of a large weight as one matrix product where that is faster than torch's own."""

from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.memory_layout import channel_sums
from gan.models.precision import full_precision, is_autocast

Convolution: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
Layer: TypeAlias = Convolution | nn.Linear
# Entries of a weight for each position of the batch's smaller images, from which on the product is faster: in the paper's
# networks the last two layers of D and the first two convolutions of G. See docs/speed.md.
_WORTH_A_PRODUCT = 100


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
    if torch.is_grad_enabled() and weight.requires_grad and _computes_in_bf16(x) and layer.padding_mode == "zeros":
        arguments = None if isinstance(layer.padding, str) else arguments_of(layer)
        if arguments is not None and _is_worth_a_product(x, weight, arguments):
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
    """torch.convolution of bf16 tensors, with ``convolution_gradients`` as its backward pass.

    For a second derivative, autograd differentiates torch's own convolution instead.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvolutionArguments) -> Tensor:
        context.save_for_backward(x, weight, bias)
        context.arguments = arguments
        return torch.convolution(x, weight, bias, *arguments)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = context.saved_tensors
        needed = context.needs_input_grad[:3]
        if torch.is_grad_enabled():
            inputs = [t for t, need in zip((x, weight, bias), needed, strict=True) if need]
            output = torch.convolution(x, weight, bias, *context.arguments)
            found = iter(torch.autograd.grad(output, inputs, gradient, create_graph=True))
            return (*(next(found) if need else None for need in needed), None)
        return (*convolution_gradients(gradient, x, weight, context.arguments, needed), None)


def convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, arguments: ConvolutionArguments, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input, weight and bias, or None for those that are not ``needed``.

    torch computes the bias's gradient only together with the weight's. The weight's is the product of one tensor's pixels with
    the patches of the other that the kernel sees; oneDNN takes up to four times as long where the weight is large and the
    images are small.
    """
    need_x, need_weight, need_bias = needed
    by_product = need_weight and _computes_in_bf16(x) and _is_worth_a_product(x, weight, arguments)
    torchs = [need_x, need_weight and not by_product, need_bias and need_weight and not by_product]
    outputs = weight.shape[1] * arguments.groups if arguments.transposed else len(weight)
    g_x, g_weight, g_bias = None, None, None
    if any(torchs):
        g_x, g_weight, g_bias = torch.ops.aten.convolution_backward(gradient, x, weight, [outputs], *arguments, torchs)
    if by_product:
        g_weight = _weight_gradient(gradient, x, weight, arguments)
    if need_bias and g_bias is None:
        g_bias = channel_sums(gradient, gradient.dtype)
    return g_x, g_weight, g_bias


def _computes_in_bf16(x: Tensor) -> bool:
    """Return whether a convolution of ``x`` is one in bf16 on a CPU."""
    if x.device.type != "cpu":
        return False
    return x.dtype == torch.bfloat16 or (is_autocast("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)


def _is_worth_a_product(x: Tensor, weight: Tensor, arguments: ConvolutionArguments) -> bool:
    if arguments.groups > 1 or max(arguments.dilation) > 1:
        return False
    shrunk = 1 if arguments.transposed else arguments.stride[0] * arguments.stride[1]
    positions = x.numel() // x.shape[1] // shrunk  # of the smaller of input and output
    return weight.numel() >= _WORTH_A_PRODUCT * positions


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, arguments: ConvolutionArguments) -> Tensor:
    """Return the gradient of ``weight``, stored channels last."""
    small, large = (x, gradient) if arguments.transposed else (gradient, x)
    patches = _patches(large, weight.shape[2:], small.shape[2:], arguments)  # B H W of small, kernel and channels of large
    pixels = small.permute(0, 2, 3, 1).flatten(0, 2)
    kernel = (pixels.T @ patches).view(small.shape[1], *weight.shape[2:], large.shape[1])
    return kernel.permute(0, 3, 1, 2)


def _patches(images: Tensor, kernel: torch.Size, places: torch.Size, arguments: ConvolutionArguments) -> Tensor:
    """Return what the kernel sees of ``images`` (B, C, H, W) at each of the ``places``: (B places, kernel C)."""
    rows, columns = arguments.padding
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))  # B H W C
    batch, down, right, channel = padded.stride()
    shape = (len(images), *places, *kernel, images.shape[1])
    strides = (batch, down * arguments.stride[0], right * arguments.stride[1], down, right, channel)
    return padded.as_strided(shape, strides).reshape(len(images) * places.numel(), -1)
