"""Normalisation of a layer: batch norm, spectral norm and mean spectral norm, interchangeable. Torch only.

In training mode the statistics that mix images are those of the whole batch over all processes, if torch.distributed
is initialised: every process must then run the same layers on the same number of images.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Layer: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
Reorder: TypeAlias = Callable[[Tensor], Tensor]


def normalize(layer: Layer, norm: str, *, output: bool = False, twice_differentiable: bool = False) -> nn.Module:
    """``layer`` under ``norm``: none, batch, spectral or mean_spectral. Its weight must have been initialised.

    A dense layer's channels are its units. The ``output`` layer of a network is never centred: batch leaves it as it
    is, and mean_spectral only divides by its largest singular value. (With real and fake images in separate batches, a
    centred output would make both mean scores equal to m.) ``twice_differentiable`` keeps to implementations whose
    gradient can be differentiated again, as a gradient penalty asks.

    Raises ValueError for an unknown norm.
    """
    if norm == "none" or (norm == "batch" and output):
        return layer
    if norm == "batch":
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        return nn.Sequential(layer, BatchNorm(channels, twice_differentiable=twice_differentiable))
    if norm == "spectral" or (norm == "mean_spectral" and output):
        return SpectralNorm(layer)
    if norm == "mean_spectral":
        return MeanSpectralNorm(layer)
    raise ValueError(f"norm {norm!r}: expected none, batch, spectral or mean_spectral")


def normalize_input(channels: int, norm: str) -> nn.Module:
    """What stands before the activation where a network normalises a layer's input (B, ``channels``, H, W) instead of its
    output (He et al. 2016, "Identity mappings"; DenseNet): BN or, of MSN, the part that is not in the weight.

    Raises ValueError for an unknown norm.
    """
    if norm == "batch":
        return BatchNorm(channels)
    if norm == "mean_spectral":
        return Centring(channels)
    if norm in ("none", "spectral"):
        return nn.Identity()
    raise ValueError(f"norm {norm!r}: expected none, batch, spectral or mean_spectral")


def processes() -> int:
    """Number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverProcesses(torch.autograd.Function):
    """An all-reduce that can be differentiated any number of times: every process's loss depends on every input, so the
    gradient of an input is the sum of theirs. (torch.distributed.nn has the same and has been deprecated.)"""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        result: Tensor = _SumOverProcesses.apply(gradient)
        return result


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x`` over all processes; differentiable, any number of times. ``x`` itself where there is one."""
    count = processes()
    return x if count == 1 else _SumOverProcesses.apply(x) / count


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """No autocast; entering its context where there is none would cost more than some of the layers' operations."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class BatchNorm(nn.SyncBatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015; Eq. 1 of the MSN paper) over all processes, on any device.

    Input (B, C, ...); parameters, buffers and state_dict are those of torch's BatchNorm. One process uses torch's own
    kernel, several CUDA processes SyncBatchNorm. That has no CPU form and no second derivative: there, the statistics
    come from differentiable all-reduces.
    """

    def __init__(self, num_features: int, *, twice_differentiable: bool = False) -> None:
        super().__init__(num_features)
        self.twice_differentiable = twice_differentiable

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return nn.modules.batchnorm._BatchNorm.forward(self, x)
        if x.is_cuda and not self.twice_differentiable:
            return super().forward(x)
        count = x.numel() // x.shape[1] * processes()
        if count == 1:
            raise ValueError("batch norm needs more than one value per channel in training")
        with torch.autocast(x.device.type, enabled=False):
            values = x if x.dtype == torch.float64 else x.float()
            others = [d for d in range(x.dim()) if d != 1]
            # Two passes: E[x^2] - E[x]^2 would lose digits where the mean is large.
            mean = mean_over_processes(values.mean(others, keepdim=True))
            centred = values - mean
            variance = mean_over_processes(centred.square().mean(others, keepdim=True))
            with torch.no_grad():
                assert self.running_mean is not None and self.running_var is not None
                assert self.num_batches_tracked is not None and self.momentum is not None
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
                unbiased = variance.flatten() * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            shape = mean.shape
            scale = self.weight.view(shape) * (variance + self.eps).rsqrt()
            return (centred * scale + self.bias.view(shape)).to(x.dtype)


class SpectralNorm(nn.Module):
    """Spectral normalisation (Miyato et al. 2018; Eq. 2 of the MSN paper): a layer with its weight W / sigma(W).

    sigma, the largest singular value of W reshaped to (outputs, rest), is u^T W v, with u and v kept by power iteration.
    Its gradient u v^T gives Eq. 8-9. sigma is not the norm of a convolution as an operator: that can be up to
    ceil(kernel / stride) times larger in each layer.

    ``iterate`` runs the power iteration and nothing else does: call it once before each update of the weights, and
    the forward passes of one update, of the other player and of an evaluation all see the same u and v.
    """

    def __init__(self, layer: Layer, *, initial_iterations: int = 15) -> None:
        """``layer`` is Conv2d, ConvTranspose2d or Linear with its initial weight."""
        super().__init__()
        self.layer = layer
        weight = layer.weight
        outputs = weight.shape[1] if self._transposed else weight.shape[0]
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", F.normalize(torch.randn(outputs, dtype=weight.dtype), dim=0).to(weight.device))
        self.register_buffer("v", torch.zeros(weight.numel() // outputs, dtype=weight.dtype, device=weight.device))
        self.iterate(initial_iterations)

    @property
    def _transposed(self) -> bool:
        return isinstance(self.layer, nn.ConvTranspose2d)

    @torch.no_grad()
    def iterate(self, iterations: int = 1) -> None:
        """Moves u and v towards the singular vectors of the largest singular value."""
        matrix, _, backwards = _as_matrix(self.layer.weight, self._transposed)
        with _full_precision(matrix.device.type):
            v = self.v
            for _ in range(iterations):
                v = F.normalize(matrix.T @ self.u, dim=0)
                self.u.copy_(F.normalize(matrix @ v, dim=0))
            if iterations:
                self.v.copy_(backwards(v))

    def sigma(self) -> Tensor:
        """The largest singular value of W as far as the power iteration has come: a scalar, in W's precision."""
        return _sigma(self.layer.weight, self.u, self.v, self._transposed)

    def weight(self) -> Tensor:
        """W / sigma(W), in W's shape; an all-zero W stays zero."""
        weight: Tensor = _DividedBySigma.apply(self.layer.weight, self.u, self.v, self._transposed)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return _apply(self.layer, x, self.weight(), self.layer.bias)


def _as_matrix(weight: Tensor, transposed: bool) -> tuple[Tensor, Reorder, Reorder]:
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


def _sigma(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor:
    """u^T W v. Can be differentiated any number of times."""
    matrix, forwards, _ = _as_matrix(weight, transposed)
    with _full_precision(weight.device.type):
        return torch.dot(u, matrix @ forwards(v))


def _divide(weight: Tensor, sigma: Tensor) -> Tensor:
    return weight / (sigma + (sigma == 0))


class _DividedBySigma(torch.autograd.Function):
    """W / sigma(W) with sigma = u^T W v. Its backward pass is Eq. 8-9, (G - <G, W / sigma> u v^T) / sigma, in two passes
    over G; a second derivative goes through the definition instead."""

    @staticmethod
    def forward(context: Any, weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor:
        sigma = _sigma(weight, u, v, transposed)
        divided = _divide(weight, sigma)
        context.save_for_backward(weight, divided, sigma, u, v)
        context.transposed = transposed
        return divided

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, divided, sigma, u, v = context.saved_tensors
        transposed = context.transposed
        if torch.is_grad_enabled():
            quotient = _divide(weight, _sigma(weight, u, v, transposed))
            (result,) = torch.autograd.grad(quotient, weight, gradient, create_graph=True)
            return result, None, None, None
        # Into the weight's own layout, in which the optimiser wants it: oneDNN's gradients of weights have another.
        result = torch.div(gradient, sigma + (sigma == 0), out=torch.empty_like(divided))
        share = torch.dot(*(t.permute(0, 2, 3, 1).flatten() if t.dim() == 4 else t.flatten() for t in (result, divided)))
        outputs, shape = int(transposed), list(weight.shape)
        shape[outputs] = 1
        result.addcmul_((u * share).view([-1 if d == outputs else 1 for d in range(weight.dim())]), v.view(shape), value=-1)
        return result, None, None, None


class MeanSpectralNorm(SpectralNorm):
    """Mean spectral normalisation: h = (W / sigma(W)) g (Eq. 6), output h - E[h] + m (Eq. 7).

    E is the mean of each channel over batch and positions; in evaluation mode its running average. m is learned. The
    layer's own bias would be cancelled by the mean: it is left out and gets no gradient.

    The layer is linear, so E[h] is W applied to the mean of what its kernel sees, and m - E[h] is passed as the layer's
    bias: no pass over the output. Under bf16 autocast that bias is rounded, which leaves up to 2^-9 of E[h] in the output's
    mean.
    """

    def __init__(self, layer: Layer, *, momentum: float = 0.1, initial_iterations: int = 15) -> None:
        """``momentum`` is the weight of the newest batch in the running mean, as in torch's BatchNorm.

        Raises ValueError for a convolution that pads with anything but zeros, or by a word.
        """
        super().__init__(layer, initial_iterations=initial_iterations)
        if not isinstance(layer, nn.Linear) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise ValueError(f"padding_mode={layer.padding_mode}, padding={layer.padding}: expected zeros, and numbers")
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        zeros = torch.zeros(channels, dtype=layer.weight.dtype, device=layer.weight.device)
        self.momentum = momentum
        self.m = nn.Parameter(zeros.clone())
        self.running_mean: Tensor
        self.register_buffer("running_mean", zeros.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), or (B, ..., C) for a dense layer. Raises ValueError when a channel has a single value in training."""
        weight = self.weight()
        if not self.training:
            return _apply(self.layer, x, weight, self.m - self.running_mean)
        rounded = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        with _full_precision(x.device.type):
            output, mean = self._centred(x.to(rounded), weight)
        if output.numel() // len(mean) * processes() == 1:
            raise ValueError("mean spectral norm needs more than one value per channel in training")
        self.running_mean.lerp_(mean, self.momentum)
        return output

    def _centred(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """h - E[h] + m, and E[h] without a gradient. ``weight`` may be of higher precision than ``x``: it is rounded to
        it, but the mean is computed in its own, since bf16 sums over a batch are too coarse."""
        if isinstance(self.layer, nn.Linear):
            rounded = weight.to(x.dtype)
            image = mean_over_processes(x.flatten(0, -2).mean(0, dtype=weight.dtype))
            mean = rounded.to(weight.dtype) @ image
            return F.linear(x, rounded, (self.m - mean).to(x.dtype)), mean.detach()
        output, mean = _CentredConvolution.apply(x, weight, self.m, _arguments(self.layer))
        return output, mean


class Centring(nn.Module):
    """h -> h - E[h] + m (Eq. 7) for an h (B, C, H, W) that no single layer has made, such as DenseNet's concatenations.

    E is the mean of each channel over batch, positions and processes; in evaluation mode its running average. m is learned.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1) -> None:
        """``momentum`` is the weight of the newest batch in the running mean, as in torch's BatchNorm."""
        super().__init__()
        self.momentum = momentum
        self.m = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        """Raises ValueError when a channel has a single value in training."""
        if not self.training:
            return h + (self.m - self.running_mean).to(h.dtype).view(1, -1, 1, 1)
        if h.numel() // h.shape[1] * processes() == 1:
            raise ValueError("centring needs more than one value per channel in training")
        output, mean = _Centred.apply(h, self.m)
        self.running_mean.lerp_(mean, self.momentum)
        return output


class _Centred(torch.autograd.Function):
    """h, m -> h - E[h] + m, and E[h], which is not differentiated: two passes over h, and in the backward pass (Eq. 10) two
    over the gradient. Can be differentiated any number of times."""

    @staticmethod
    def forward(context: Any, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        mean = mean_over_processes(_channel_sums(h, m.dtype) / (h.numel() // len(m)))
        context.mark_non_differentiable(mean)
        return h + (m - mean).to(h.dtype).view(1, -1, 1, 1), mean

    @staticmethod
    def backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        g_m = _channel_sums(gradient, torch.promote_types(gradient.dtype, torch.float32))
        mean = mean_over_processes(g_m / (gradient.numel() // len(g_m)))
        return gradient - mean.to(gradient.dtype).view(1, -1, 1, 1), g_m


class _Arguments(NamedTuple):
    """Of a convolution, as torch.convolution and its backward pass take them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def _arguments(layer: nn.Conv2d | nn.ConvTranspose2d) -> _Arguments:
    assert not isinstance(layer.padding, str)
    return _Arguments(layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)


class _CentredConvolution(torch.autograd.Function):
    """x, W, m -> W * x - E[W * x] + m (Eq. 7), and E[W * x], which is not differentiated.

    E[W * x] is W times the mean patch: what each entry of the kernel sees, averaged over batch and positions. It comes
    from the mean image of the batch, so the only pass over something large is the one that averages x.

    Backward (Eq. 10): with G the gradient of the output and s its mean per channel, the convolution's own backward pass is
    given G - s. That is linear too. So either s is subtracted first, or G is given as it is and what s would have given is
    subtracted after: one image from the gradient of x, an outer product with the mean patch from that of W. The
    cheaper of the two is taken: where G is much smaller than x (stride 2), the first.

    A second derivative goes through the definition instead.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, m: Tensor, arguments: _Arguments) -> tuple[Tensor, Tensor]:
        rounded = weight.to(x.dtype)
        rows, columns = _windows(x.shape[2:], weight.shape[2:], arguments, weight.dtype, weight.device)
        image = mean_over_processes(_mean_image(x, weight.dtype))
        patch = columns @ (rows @ image.flatten(1)).unflatten(1, image.shape[1:])  # kernel-height kernel-width C
        patch = patch.permute(2, 0, 1)
        mean = _respond(rounded.to(weight.dtype), patch, arguments)
        context.save_for_backward(x, weight, m, patch)
        context.arguments = arguments
        context.mark_non_differentiable(mean)
        return torch.convolution(x, rounded, (m - mean).to(x.dtype), *arguments), mean

    @staticmethod
    def backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, m, patch = context.saved_tensors
        arguments, (need_x, need_weight, *_) = context.arguments, context.needs_input_grad
        if torch.is_grad_enabled():
            inputs = [t for t, needed in zip((x, weight, m), context.needs_input_grad, strict=False) if needed]
            output = _centred_by_definition(x, weight, m, arguments)
            found = iter(torch.autograd.grad(output, inputs, gradient, create_graph=True))
            g_x, g_weight, g_m = (next(found) if needed else None for needed in context.needs_input_grad[:3])
            return g_x, g_weight, g_m, None
        rounded = weight.to(x.dtype)
        values = gradient.numel() // gradient.shape[1] * processes()  # that a channel's mean is over

        def convolution_backward(gradient: Tensor, *, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
            mask = [need_x, need_weight, bias]
            result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
                gradient, x, rounded, [len(m)], *arguments, mask
            )
            return result

        if 3 * gradient.numel() <= 2 * x.numel():
            g_m = _channel_sums(gradient, weight.dtype)
            s = (_summed_over_processes(g_m) / values).to(gradient.dtype)
            g_x, g_weight, _ = convolution_backward(gradient - s.view(1, -1, 1, 1), bias=False)
            return g_x, g_weight, g_m, None
        # The gradient of a bias comes with that of the weight, and not without it.
        g_x, g_weight, g_m = convolution_backward(gradient, bias=need_weight)
        g_m = g_m.to(weight.dtype) if need_weight else _channel_sums(gradient, weight.dtype)
        if need_x:
            rows, columns = _windows(x.shape[2:], weight.shape[2:], arguments, weight.dtype, weight.device)
            s = _summed_over_processes(g_m) / (gradient.shape[0] * processes())  # times what the windows divide by
            above = _respond_back(rounded.to(weight.dtype), s, weight.shape[2:], arguments).permute(1, 2, 0)
            _subtract_image(g_x, (rows.T @ (columns.T @ above).flatten(1)).to(g_x.dtype))
        if need_weight:
            g_weight = g_weight.to(weight.dtype)
            # The outer product of s and the mean patch, of which s is without its divisor and the patch has it.
            _grouped(g_weight, arguments).addcmul_(
                g_m.view(arguments.groups, -1, 1, 1, 1), patch.unflatten(0, (arguments.groups, 1, -1)), value=-1
            )
        return g_x, g_weight, g_m, None


def _centred_by_definition(x: Tensor, weight: Tensor, m: Tensor, arguments: _Arguments) -> Tensor:
    """Eq. 7 word for word, for any number of derivatives."""
    h = torch.convolution(x, weight.to(x.dtype), None, *arguments)
    mean = mean_over_processes(h.mean((0, 2, 3), dtype=m.dtype))
    return (h - mean.view(1, -1, 1, 1) + m.view(1, -1, 1, 1)).to(x.dtype)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


# Sums over images, and over all but the channels, take torch ten times as long for four dimensions as for the two that the
# memory has (CPU, 2.14), so these flatten first.
def _mean_image(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) to (H, W, C), in ``dtype``."""
    _, channels, height, width = x.shape
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).flatten(1).sum(0, dtype=dtype).view(height, width, channels) / len(x)
    return (x.flatten(1).sum(0, dtype=dtype).view(channels, height, width) / len(x)).permute(1, 2, 0)


def _channel_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) to (C,), in ``dtype``."""
    if not _is_channels_last(x):
        return x.sum((0, 2, 3), dtype=dtype)
    return x.permute(0, 2, 3, 1).flatten(0, 2).sum(0, dtype=dtype)


def _subtract_image(x: Tensor, image: Tensor) -> None:
    """Takes ``image`` (H, W C) from every image of ``x`` (B, C, H, W), in place."""
    if _is_channels_last(x):
        x.permute(0, 2, 3, 1).flatten(1).sub_(image.flatten())
    else:
        x.sub_(image.unflatten(1, (x.shape[3], -1)).permute(2, 0, 1))


def _summed_over_processes(x: Tensor) -> Tensor:
    return x if processes() == 1 else _SumOverProcesses.forward(None, x)


@lru_cache(256)
def _windows(
    image: torch.Size, kernel: torch.Size, arguments: _Arguments, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Matrices (kernel size, image size) for rows and columns: an entry is the share of output positions at which an
    entry of the kernel meets a row (or column) of the image."""
    rows, columns = (_window(image[d], kernel[d], d, arguments).to(device, dtype) for d in (0, 1))
    return rows, columns


def _window(size: int, kernel: int, d: int, arguments: _Arguments) -> Tensor:
    stride, padding, dilation = arguments.stride[d], arguments.padding[d], arguments.dilation[d]
    taps, places = torch.arange(kernel)[:, None], torch.arange(size)[None]
    if arguments.transposed:
        outputs = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + arguments.output_padding[d] + 1
        output = places * stride - padding + taps * dilation  # that the place contributes to through the tap
        meets = (output >= 0) & (output < outputs)
    else:
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        start = places + padding - taps * dilation  # of the window in which the tap lies on the place
        meets = (start >= 0) & (start < outputs * stride) & (start % stride == 0)
    return meets.to(torch.float64) / outputs


def _grouped(weight: Tensor, arguments: _Arguments) -> Tensor:
    """Weight as (groups, outputs of a group, inputs of a group, kernel height, kernel width)."""
    grouped = weight.unflatten(0, (arguments.groups, -1))  # a view, also to write to
    return grouped.transpose(1, 2) if arguments.transposed else grouped


def _respond(weight: Tensor, patch: Tensor, arguments: _Arguments) -> Tensor:
    """What each output makes of one ``patch`` (C, height, width): (outputs,)."""
    parts = []
    for own, seen in zip(weight.chunk(arguments.groups), patch.chunk(arguments.groups), strict=True):
        matrix, forwards, _ = _as_matrix(own, arguments.transposed)
        parts.append(matrix @ forwards(seen.flatten()))
    return torch.cat(parts)


def _respond_back(weight: Tensor, gradient: Tensor, kernel: torch.Size, arguments: _Arguments) -> Tensor:
    """The gradient of the patch in ``_respond``: (C, height, width)."""
    parts = []
    for own, above in zip(weight.chunk(arguments.groups), gradient.chunk(arguments.groups), strict=True):
        matrix, _, backwards = _as_matrix(own, arguments.transposed)
        parts.append(backwards(matrix.T @ above))
    return torch.cat(parts).unflatten(0, (-1, *kernel))


def _apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What ``layer`` computes, with another weight and bias."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, bias)
    if isinstance(layer, nn.ConvTranspose2d):
        assert not isinstance(layer.padding, str)
        return F.conv_transpose2d(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    return F.linear(x, weight, bias)


def iterate_spectral_norms(network: nn.Module) -> None:
    """One power iteration in every spectrally normalised layer of ``network``; nothing where there is none."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.iterate()
