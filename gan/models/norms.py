"""Normalisation of a layer: batch norm, spectral norm and mean spectral norm, interchangeable.

In training mode the statistics that mix images are those of the whole batch over all processes, if torch.distributed
is initialised: every process must then run the same layers on the same number of images.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.mean_subtraction import (
    MeanSubtractedConvolution,
    MeanSubtraction,
    arguments_of,
    as_matrix,
    full_precision,
    mean_over_processes,
    processes,
)

Layer: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


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
        return MeanShift(channels)
    if norm in ("none", "spectral"):
        return nn.Identity()
    raise ValueError(f"norm {norm!r}: expected none, batch, spectral or mean_spectral")


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

    ``power_iteration`` runs the power iteration and nothing else does: call it once before each update of the weights, and
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
        self._kept: Tensor | None = None  # W / sigma(W) within `divided_once`
        self.power_iteration(initial_iterations)

    @property
    def _transposed(self) -> bool:
        return isinstance(self.layer, nn.ConvTranspose2d)

    @torch.no_grad()
    def power_iteration(self, iterations: int = 1) -> None:
        """Moves u and v towards the singular vectors of the largest singular value."""
        matrix, _, backwards = as_matrix(self.layer.weight, self._transposed)
        with full_precision(matrix.device.type):
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
        if self._kept is not None:
            return self._kept
        weight: Tensor = _DivideBySigma.apply(self.layer.weight, self.u, self.v, self._transposed)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return _apply(self.layer, x, self.weight(), self.layer.bias)


def _sigma(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor:
    """u^T W v. Can be differentiated any number of times."""
    matrix, forwards, _ = as_matrix(weight, transposed)
    with full_precision(weight.device.type):
        return torch.dot(u, matrix @ forwards(v))


def _divide(weight: Tensor, sigma: Tensor) -> Tensor:
    return weight / (sigma + (sigma == 0))


class _DivideBySigma(torch.autograd.Function):
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
        across = v.view(shape)
        if weight.dim() == 4 and not weight.is_contiguous():
            # In the order of the weight's memory: in another, the outer product takes ten times as long.
            across = across.contiguous(memory_format=torch.channels_last)
        result.addcmul_((u * share).view([-1 if d == outputs else 1 for d in range(weight.dim())]), across, value=-1)
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
        with full_precision(x.device.type):
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
        output, mean = MeanSubtractedConvolution.apply(x, weight, self.m, arguments_of(self.layer))
        return output, mean


class MeanShift(nn.Module):
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
        output, mean = MeanSubtraction.apply(h, self.m)
        self.running_mean.lerp_(mean, self.momentum)
        return output


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


def power_iterate(network: nn.Module) -> None:
    """One power iteration in every spectrally normalised layer of ``network``; nothing where there is none."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.power_iteration()


@contextmanager
def shared_spectral_weights(network: nn.Module) -> Iterator[None]:
    """Within it, every spectrally normalised layer of ``network`` has its W / sigma(W) computed and differentiated once, however
    many forward passes there are. Weights and singular vectors must not change meanwhile."""
    layers = [module for module in network.modules() if isinstance(module, SpectralNorm)]
    for layer in layers:
        layer._kept = layer.weight()
    try:
        yield
    finally:
        for layer in layers:
            layer._kept = None
