"""Normalisation of a layer: batch norm, spectral norm and mean spectral norm, interchangeable. Torch only.

In training mode the statistics that mix images are those of the whole batch over all processes, if torch.distributed
is initialised: every process must then run the same layers on the same number of images.
"""

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

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
        matrix = self._matrix()
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", F.normalize(torch.randn(matrix.shape[0], dtype=matrix.dtype), dim=0).to(matrix.device))
        self.register_buffer("v", torch.zeros(matrix.shape[1], dtype=matrix.dtype, device=matrix.device))
        self.iterate(initial_iterations)

    def _matrix(self) -> Tensor:
        """W as (outputs, rest). A transposed convolution keeps its outputs in dimension 1."""
        weight = self.layer.weight
        return weight.transpose(0, 1).flatten(1) if isinstance(self.layer, nn.ConvTranspose2d) else weight.flatten(1)

    @torch.no_grad()
    def iterate(self, iterations: int = 1) -> None:
        """Moves u and v towards the singular vectors of the largest singular value."""
        matrix = self._matrix()
        with torch.autocast(matrix.device.type, enabled=False):
            for _ in range(iterations):
                self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
                self.u.copy_(F.normalize(matrix @ self.v, dim=0))

    def sigma(self) -> Tensor:
        """The largest singular value of W as far as the power iteration has come: a scalar, in W's precision."""
        matrix = self._matrix()
        with torch.autocast(matrix.device.type, enabled=False):
            return torch.dot(self.u, matrix @ self.v)

    def weight(self) -> Tensor:
        """W / sigma(W), in W's shape; an all-zero W stays zero."""
        sigma = self.sigma()
        return self.layer.weight / torch.where(sigma == 0, torch.ones_like(sigma), sigma)

    def forward(self, x: Tensor) -> Tensor:
        return _apply(self.layer, x, self.weight(), self.layer.bias)


class MeanSpectralNorm(SpectralNorm):
    """Mean spectral normalisation: h = (W / sigma(W)) g (Eq. 6), output h - E[h] + m (Eq. 7).

    E is the mean of each channel over batch and positions; in evaluation mode its running average. m is learned. The
    layer's own bias would be cancelled by the mean: it is left out and gets no gradient.

    The layer is linear, so E[h] is the mean over positions of the layer applied to the mean image of the batch, and
    m - E[h] is passed as the layer's bias: no pass over the output. Autograd then yields Eq. 10. Under bf16 autocast that
    bias is rounded, which leaves up to 2^-9 of E[h] in the output's mean.
    """

    def __init__(self, layer: Layer, *, momentum: float = 0.1, initial_iterations: int = 15) -> None:
        """``momentum`` is the weight of the newest batch in the running mean, as in torch's BatchNorm."""
        super().__init__(layer, initial_iterations=initial_iterations)
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        zeros = torch.zeros(channels, dtype=layer.weight.dtype, device=layer.weight.device)
        self.momentum = momentum
        self.m = nn.Parameter(zeros.clone())
        self.running_mean: Tensor
        self.register_buffer("running_mean", zeros.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), or (B, ..., C) for a dense layer. Raises ValueError when a channel has a single value in training."""
        weight = self.weight()
        mean = self._batch_mean(x, weight) if self.training else self.running_mean
        return _apply(self.layer, x, weight, self.m - mean)

    def _batch_mean(self, x: Tensor, weight: Tensor) -> Tensor:
        exact = weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            # The mean of what the layer will compute from its rounded weight and input, not of something near it.
            rounded = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(rounded), weight.to(rounded).to(exact)
        with torch.autocast(x.device.type, enabled=False):
            # Accumulate in the weight's own precision: bf16 sums over a batch are too coarse.
            if isinstance(self.layer, nn.Linear):
                images, image = x.numel() // x.shape[-1], x.flatten(0, -2).mean(0, keepdim=True, dtype=exact)
            else:
                images, image = len(x), x.mean(0, keepdim=True, dtype=exact)  # 1 C H W
            h = _apply(self.layer, mean_over_processes(image), weight, None)
            if images * processes() * h[0, 0].numel() == 1:
                raise ValueError("mean spectral norm needs more than one value per channel in training")
            mean = h.flatten(2).mean((0, 2)) if h.dim() > 2 else h[0]
        self.running_mean.lerp_(mean.detach(), self.momentum)
        return mean


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
