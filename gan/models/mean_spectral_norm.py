"""Mean spectral normalisation of a layer, and its mean subtraction alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.all_reduce import mean_over_processes, processes
from gan.models.mean_subtraction import MeanSubtractedConvolution, MeanSubtraction, arguments_of, mean_patch
from gan.models.spectral_norm import Layer, SpectralNorm, apply_layer, full_precision


class MeanSpectralNorm(SpectralNorm):
    """Mean spectral normalisation: h = (W / sigma(W)) g (Eq. 6), output h - E[h] + m (Eq. 7).

    E is the mean of each channel over batch and positions; in evaluation mode it is the running mean. m is learned. The mean
    would cancel the layer's own bias, so that bias is not used and gets no gradient.

    With ``gain``, the output is gain (h - E[h]) + m with a learned factor per channel, as in the code that the paper's authors
    released; ``running_mean`` is then that of gain h.

    The layer is linear, so E[h] is W applied to the mean patch that the kernel sees. m - E[h] is passed as the layer's bias,
    which needs no pass over the output. bf16 autocast rounds that bias, which leaves up to 2^-9 of E[h] in the output's mean.
    """

    def __init__(self, layer: Layer, *, momentum: float = 0.1, gain: bool = False, initial_iterations: int = 15) -> None:
        """Wrap ``layer``. ``momentum`` is the weight of the newest batch in the running mean, as in torch's BatchNorm.

        Raises ValueError for a convolution whose padding is not zeros, or is given as a word such as "same".
        """
        super().__init__(layer, initial_iterations=initial_iterations)
        if not isinstance(layer, nn.Linear) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise ValueError(f"padding_mode={layer.padding_mode}, padding={layer.padding}: expected zeros, and numbers")
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        zeros = torch.zeros(channels, dtype=layer.weight.dtype, device=layer.weight.device)
        self.momentum = momentum
        self.m = nn.Parameter(zeros.clone())
        self.gain = nn.Parameter(torch.ones_like(zeros)) if gain else None
        self.running_mean: Tensor
        self.register_buffer("running_mean", zeros.clone())
        self._remembering = 0  # number of first images of a batch whose mean patch is remembered
        self._remembered: Tensor | None = None
        self._completing = False  # whether means are taken over the remembered images too

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W), or (B, ..., C) for a dense layer.

        Raises ValueError in training when a channel has a single value.
        """
        weight = self.weight()
        if self.gain is not None:
            outputs = int(isinstance(self.layer, nn.ConvTranspose2d))  # the weight's dimension of output channels
            weight = weight * self.gain.view([-1 if d == outputs else 1 for d in range(weight.dim())])
        if not self.training:
            return apply_layer(self.layer, x, weight, self.m - self.running_mean)
        rounded = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        with full_precision(x.device.type):
            output, mean = self._centred(x.to(rounded), weight)
        if output.numel() // len(mean) * processes() == 1:
            raise ValueError("mean spectral norm needs more than one value per channel in training")
        self.running_mean.lerp_(mean, self.momentum)
        return output

    def _centred(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return h - E[h] + m, and E[h] without a gradient.

        h is computed in the precision of ``x``. The mean is computed in that of ``weight``, since sums over a batch in bf16
        are too coarse.
        """
        if isinstance(self.layer, nn.Linear):
            rounded = weight.to(x.dtype)
            image = mean_over_processes(x.flatten(0, -2).mean(0, dtype=weight.dtype))
            mean = rounded.to(weight.dtype) @ image
            return F.linear(x, rounded, (self.m - mean).to(x.dtype)), mean.detach()
        arguments, other = arguments_of(self.layer), self._remembered if self._completing else None
        if self._remembering:
            first, rest = (mean_patch(part, weight, arguments) for part in (x[: self._remembering], x[self._remembering :]))
            self._remembered, patch = first, (first + rest) / 2
        else:
            patch = mean_patch(x, weight, arguments)
            patch = patch if other is None else (patch + other) / 2
        output, mean = MeanSubtractedConvolution.apply(x, weight, self.m, arguments, patch, other)
        return output, mean


@contextmanager
def remember_first_half(network: nn.Module, count: int) -> Iterator[None]:
    """Remember, in each MeanSpectralNorm of a convolution, the mean over the first ``count`` of a batch of 2 ``count`` images.

    ``complete_with_remembered`` uses it.
    """
    layers = _centred_convolutions(network)
    for layer in layers:
        layer._remembering = count
    try:
        yield
    finally:
        for layer in layers:
            layer._remembering = 0


@contextmanager
def complete_with_remembered(network: nn.Module) -> Iterator[None]:
    """Take means over a batch and, as constants, over as many remembered images, without passing those through ``network``."""
    layers = _centred_convolutions(network)
    assert all(layer._remembered is not None for layer in layers)
    for layer in layers:
        layer._completing = True
    try:
        yield
    finally:
        for layer in layers:
            layer._completing = False


def _centred_convolutions(network: nn.Module) -> list[MeanSpectralNorm]:
    return [m for m in network.modules() if isinstance(m, MeanSpectralNorm) and not isinstance(m.layer, nn.Linear)]


class MeanShift(nn.Module):
    """h -> h - E[h] + m (Eq. 7) for an h (B, C, H, W) that is not the output of one layer, such as DenseNet's concatenations.

    E is the mean of each channel over batch, positions and processes; in evaluation mode it is the running mean. m is learned.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1) -> None:
        """``momentum`` is the weight of the newest batch in the running mean, as in torch's BatchNorm."""
        super().__init__()
        self.momentum = momentum
        self.m = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, C, H, W). Raises ValueError in training when a channel has a single value."""
        if not self.training:
            return h + (self.m - self.running_mean).to(h.dtype).view(1, -1, 1, 1)
        if h.numel() // h.shape[1] * processes() == 1:
            raise ValueError("centring needs more than one value per channel in training")
        output: Tensor
        output, mean = MeanSubtraction.apply(h, self.m)
        self.running_mean.lerp_(mean, self.momentum)
        return output
