"""Spectral normalisation of a layer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.convolution import Layer, apply_layer
from gan.models.memory_layout import as_matrix
from gan.models.precision import full_precision


def require_supported(layer: nn.Module) -> None:
    """Raise TypeError for a layer that the norms do not know, and ValueError for one whose weight has no shape yet."""
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        raise TypeError(f"{type(layer).__name__}: expected a Conv2d, ConvTranspose2d or Linear")
    if nn.parameter.is_lazy(layer.weight):
        raise ValueError(f"{type(layer).__name__}: its weight has no shape yet. Pass a batch through it first.")


class SpectralNorm(nn.Module):
    """Spectral normalisation (Miyato et al. 2018; Eq. 2 of the MSN paper): a layer with the weight W / sigma(W).

    sigma is the largest singular value of W reshaped to (outputs, rest). It is computed as u^T W v, where power iteration
    keeps u and v; its gradient u v^T gives Eq. 8-9. sigma is not the operator norm of a convolution, which can be up to
    ceil(kernel / stride) times larger in each layer.

    Each forward pass in training mode takes ``iterations`` power iterations first. After ``iterate_explicitly(network)`` only
    ``power_iterate(network)`` changes u and v: the form for losses of several forward passes, as those of a GAN. Called once
    before each update of the weights, it lets all passes of that update, those of the other player's update and those of an
    evaluation use the same u and v.

    W may have any scale, zero included: u and v are never zero, and cW gives the same layer as W. An all-zero W stays zero,
    and is normalised as soon as it is not.
    """

    def __init__(self, layer: Layer, *, initial_iterations: int = 15, iterations: int = 1) -> None:
        """Wrap ``layer``, a Conv2d, ConvTranspose2d or Linear that has its initial weight. Raises TypeError for another layer."""
        super().__init__()
        require_supported(layer)
        self.layer = layer
        self.iterations = iterations
        weight = layer.weight
        outputs = weight.shape[1] if self._transposed else weight.shape[0]
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", F.normalize(torch.randn(outputs, dtype=weight.dtype), dim=0).to(weight.device))
        rest = weight.numel() // outputs
        start = F.normalize(torch.linspace(1, 2, rest, dtype=torch.float64), dim=0)  # kept only while W is zero
        self.register_buffer("v", start.to(weight))
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
            v, scale = self.v, _root_of_scale(self.layer.weight)
            for _ in range(iterations):
                # Other vectors where these are mapped to zero: W is zero, or is new and has other singular vectors.
                v = _unit(matrix.T @ (self.u * scale) * scale, otherwise=v.roll(1))
                self.u.copy_(_unit(matrix @ (v * scale) * scale, otherwise=len(self.u) ** -0.5))
            if iterations:
                self.v.copy_(backwards(v))

    def sigma(self) -> Tensor:
        """Return u^T W v, the present estimate of the largest singular value: a scalar, in W's precision."""
        return _sigma(self.layer.weight, self.u, self.v, self._transposed)

    def weight(self) -> Tensor:
        """Return W / sigma(W), in W's shape. An all-zero W stays zero."""
        return self._kept if self._kept is not None else self._divided(self.u, self.v)

    def weight_of_pass(self) -> Tensor:
        """Return W / sigma(W) for a forward pass, after the power iterations that belong to one in training mode."""
        if self._kept is not None or not self.training or not self.iterations:
            return self.weight()
        self.power_iteration(self.iterations)
        return self._divided(self.u.clone(), self.v.clone())  # the next pass may change u and v before this one's backward pass

    def share_weight(self, weight: Tensor | None) -> None:
        """Use ``weight`` as W / sigma(W) in all passes from now on; with None, compute it again in each."""
        self._kept = weight

    def _divided(self, u: Tensor, v: Tensor) -> Tensor:
        weight, _ = _DivideBySigma.apply(self.layer.weight, u, v, self._transposed)
        return cast(Tensor, weight)

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self.layer, x, self.weight_of_pass(), self.layer.bias)


def _largest(weight: Tensor) -> Tensor:
    """Return the largest magnitude in ``weight``, a scalar."""
    # In memory order and in one pass: weight.abs().amax() takes twice as long on a CPU, vector_norm(inf) 34 times.
    in_order = weight.permute(0, 2, 3, 1) if weight.dim() == 4 and not weight.is_contiguous() else weight
    lowest, highest = torch.aminmax(in_order.flatten())
    return torch.maximum(-lowest, highest)


def _root_of_scale(weight: Tensor) -> Tensor:
    """Return 1 for a ``weight`` of ordinary scale; else c such that squares of c^2 W neither overflow nor vanish."""
    largest, limits = _largest(weight), torch.finfo(weight.dtype)
    return torch.rsqrt(largest / largest.clamp(max(1e-10, limits.tiny), min(1e10, limits.max)))


def _unit(vector: Tensor, otherwise: Tensor | float) -> Tensor:
    """Return ``vector`` divided by its norm; ``otherwise`` where that is zero or not a number."""
    norm = vector.norm(2, 0, keepdim=True)
    return torch.where(norm > 0, vector / norm, otherwise)


def _sigma(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor:
    """Return u^T W v. It can be differentiated any number of times."""
    matrix, forwards, _ = as_matrix(weight, transposed)
    with full_precision(weight.device.type):
        return torch.dot(u, matrix @ forwards(v))


def divide_by(weight: Tensor, sigma: Tensor) -> Tensor:
    """Return ``weight`` / ``sigma``, or ``weight`` itself for a sigma of 0."""
    return weight / (sigma + (sigma == 0))


def power_of_two(weight: Tensor) -> Tensor:
    """Return a power of two, a scalar, by which ``weight`` has a largest magnitude of about 1.

    Multiplying by it is exact, so W / sigma(W) has the same bits for every ordinary scale of W. Without it, sigma overflows for
    a large W, and has few digits for a tiny one.
    """
    largest = _largest(weight)
    limit = 1 - math.frexp(torch.finfo(weight.dtype).tiny)[1]  # 2^limit and 2^-limit are numbers of W's precision
    return torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent.clamp(-limit, limit))


class _DivideBySigma(torch.autograd.Function):
    """W -> W / sigma(W), sigma(W) with sigma = u^T W v, which is not differentiated as an output.

    The backward pass is Eq. 8-9, (G - <G, W / sigma> u v^T) / sigma, in two passes over G. For a second derivative, autograd
    differentiates the definition instead.
    """

    @staticmethod
    def forward(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        scale = power_of_two(weight)
        scaled = weight * scale
        sigma = _sigma(scaled, u, v, transposed)
        return scaled.div_(sigma + (sigma == 0)), sigma / scale  # in place: fresh memory takes longer than the division

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
        weight, u, v, context.transposed = inputs
        divided, sigma = output
        context.mark_non_differentiable(sigma)
        context.save_for_backward(weight, divided, sigma, u, v)

    @staticmethod
    def backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        weight, divided, sigma, u, v = context.saved_tensors
        transposed = context.transposed
        if torch.is_grad_enabled():
            quotient = divide_by(weight, _sigma(weight, u, v, transposed))
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


def power_iterate(network: nn.Module) -> None:
    """Take one power iteration in every spectrally normalised layer of ``network``, if it has any."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.power_iteration()


N = TypeVar("N", bound=nn.Module)


def iterate_explicitly(network: N) -> N:
    """Return ``network``, whose layers take no power iterations of their own from now on: call ``power_iterate`` instead."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.iterations = 0
    return network


@contextmanager
def shared_spectral_weights(network: nn.Module) -> Iterator[None]:
    """Compute and differentiate each W / sigma(W) of ``network`` once in the block, for any number of forward passes.

    Weights and singular vectors must not change inside the block.
    """
    layers = [module for module in network.modules() if isinstance(module, SpectralNorm)]
    for layer in layers:
        layer.share_weight(layer.weight_of_pass())
    try:
        yield
    finally:
        for layer in layers:
            layer.share_weight(None)
