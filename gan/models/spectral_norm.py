"""Spectral normalisation of a layer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.memory_layout import as_matrix

Layer: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def full_precision(device: str) -> AbstractContextManager[Any]:
    """No autocast; entering its context where there is none would cost more than some of the layers' operations."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


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
        return apply_layer(self.layer, x, self.weight(), self.layer.bias)


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


def apply_layer(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
