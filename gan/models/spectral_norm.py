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
    """Return a context without autocast. Where there is none, it is empty: entering autocast costs more than some layers."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class SpectralNorm(nn.Module):
    """Spectral normalisation (Miyato et al. 2018; Eq. 2 of the MSN paper): a layer with the weight W / sigma(W).

    sigma is the largest singular value of W reshaped to (outputs, rest). It is computed as u^T W v, where power iteration
    keeps u and v; its gradient u v^T gives Eq. 8-9. sigma is not the operator norm of a convolution, which can be up to
    ceil(kernel / stride) times larger in each layer.

    Only ``power_iteration`` changes u and v. Call it once before each update of the weights: all forward passes of that
    update, those of the other player's update and those of an evaluation then use the same u and v.
    """

    def __init__(self, layer: Layer, *, initial_iterations: int = 15) -> None:
        """Wrap ``layer``, a Conv2d, ConvTranspose2d or Linear that has its initial weight."""
        super().__init__()
        self.layer = layer
        weight = layer.weight
        outputs = weight.shape[1] if self._transposed else weight.shape[0]
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", F.normalize(torch.randn(outputs, dtype=weight.dtype), dim=0).to(weight.device))
        self.register_buffer("v", torch.zeros(weight.numel() // outputs, dtype=weight.dtype, device=weight.device))
        self._kept: Tensor | None = None  # W / sigma(W) within `shared_spectral_weights`
        self.power_iteration(initial_iterations)

    @property
    def _transposed(self) -> bool:
        return isinstance(self.layer, nn.ConvTranspose2d)

    @torch.no_grad()
    def power_iteration(self, iterations: int = 1) -> None:
        """Move u (outputs,) and v (rest,) towards the singular vectors of the largest singular value."""
        matrix, _, backwards = as_matrix(self.layer.weight, self._transposed)
        with full_precision(matrix.device.type):
            v = self.v
            for _ in range(iterations):
                v = F.normalize(matrix.T @ self.u, dim=0)
                self.u.copy_(F.normalize(matrix @ v, dim=0))
            if iterations:
                self.v.copy_(backwards(v))

    def sigma(self) -> Tensor:
        """Return u^T W v, the present estimate of the largest singular value: a scalar, in W's precision."""
        return _sigma(self.layer.weight, self.u, self.v, self._transposed)

    def weight(self) -> Tensor:
        """Return W / sigma(W), in W's shape. An all-zero W stays zero."""
        if self._kept is not None:
            return self._kept
        weight: Tensor = _DivideBySigma.apply(self.layer.weight, self.u, self.v, self._transposed)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self.layer, x, self.weight(), self.layer.bias)


def _sigma(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor:
    """Return u^T W v. It can be differentiated any number of times."""
    matrix, forwards, _ = as_matrix(weight, transposed)
    with full_precision(weight.device.type):
        return torch.dot(u, matrix @ forwards(v))


def _divide(weight: Tensor, sigma: Tensor) -> Tensor:
    return weight / (sigma + (sigma == 0))


class _DivideBySigma(torch.autograd.Function):
    """W / sigma(W) with sigma = u^T W v.

    The backward pass is Eq. 8-9, (G - <G, W / sigma> u v^T) / sigma, in two passes over G. For a second derivative, autograd
    differentiates the definition instead.
    """

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
        # In the weight's memory layout, which the optimiser expects: gradients from oneDNN have another one.
        result = torch.div(gradient, sigma + (sigma == 0), out=torch.empty_like(divided))
        share = torch.dot(*(t.permute(0, 2, 3, 1).flatten() if t.dim() == 4 else t.flatten() for t in (result, divided)))
        outputs, shape = int(transposed), list(weight.shape)
        shape[outputs] = 1
        across = v.view(shape)
        if weight.dim() == 4 and not weight.is_contiguous():
            # The outer product takes ten times as long where its memory order is not the weight's.
            across = across.contiguous(memory_format=torch.channels_last)
        result.addcmul_((u * share).view([-1 if d == outputs else 1 for d in range(weight.dim())]), across, value=-1)
        return result, None, None, None


def apply_layer(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of ``layer`` for ``x``, with ``weight`` and ``bias`` in place of its own."""
    if isinstance(layer, nn.Conv2d):
        output: Tensor = layer._conv_forward(x, weight, bias)
        return output
    if isinstance(layer, nn.ConvTranspose2d):
        assert not isinstance(layer.padding, str)
        return F.conv_transpose2d(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    return F.linear(x, weight, bias)


def power_iterate(network: nn.Module) -> None:
    """Take one power iteration in every spectrally normalised layer of ``network``, if it has any."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.power_iteration()


@contextmanager
def shared_spectral_weights(network: nn.Module) -> Iterator[None]:
    """Compute and differentiate each W / sigma(W) of ``network`` once in the block, for any number of forward passes.

    Weights and singular vectors must not change inside the block.
    """
    layers = [module for module in network.modules() if isinstance(module, SpectralNorm)]
    for layer in layers:
        layer._kept = layer.weight()
    try:
        yield
    finally:
        for layer in layers:
            layer._kept = None
