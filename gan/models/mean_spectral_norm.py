"""Mean spectral normalisation of a layer, and its mean subtraction alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.all_reduce import mean_over_processes, processes
from gan.models.convolution import Layer, apply_layer, arguments_of, pad_beyond_half
from gan.models.mean_subtraction import MeanSubtractedConvolution, MeanSubtraction, RoundedWeight, round_weight
from gan.models.precision import full_precision, is_autocast
from gan.models.spectral_norm import SpectralNorm


class MeanSpectralNorm(SpectralNorm):
    """Mean spectral normalisation: h = (W / sigma(W)) g (Eq. 6), output h - E[h] + m (Eq. 7).

    E is the mean of each channel over batch and positions; in evaluation mode it is the running mean. m is learned. The mean
    would cancel the layer's own bias, so that bias is not used and gets no gradient.

    With ``gain``, the output is gain (h - E[h]) + m with a learned factor per channel, as in the code that the paper's authors
    released; ``running_mean`` is then that of gain h.

    The layer is linear, so E[h] is W applied to the mean patch that the kernel sees. m - E[h] is passed as the layer's bias,
    which needs no pass over the output. bf16 autocast rounds that bias, which leaves up to 2^-9 of E[h] in the output's mean.
    """

    def __init__(
        self, layer: Layer, *, momentum: float = 0.1, gain: bool = False, initial_iterations: int = 15, iterations: int = 1
    ) -> None:
        """Wrap ``layer``. ``momentum`` is the weight of the newest batch in the running mean, as in torch's BatchNorm.

        Raises TypeError for a layer that SpectralNorm does not know, and ValueError for a convolution whose padding is not zeros,
        or is given as a word such as "same".
        """
        super().__init__(layer, initial_iterations=initial_iterations, iterations=iterations)
        if not isinstance(layer, nn.Linear) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise ValueError(f"padding_mode={layer.padding_mode}, padding={layer.padding}: expected zeros, and numbers")
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        zeros = torch.zeros(channels, dtype=layer.weight.dtype, device=layer.weight.device)
        self.momentum = momentum
        self.m = nn.Parameter(zeros.clone())
        self.gain = nn.Parameter(torch.ones_like(zeros)) if gain else None
        self.running_mean: Tensor
        self.register_buffer("running_mean", zeros.clone())
        self._groups: tuple[int, ...] | None = None  # within `groups_of_equal_weight`
        self._kept_rounded: RoundedWeight | None = None  # of `_kept`, within `shared_spectral_weights`

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W), or (B, ..., C) for a dense layer.

        Raises ValueError in training when a channel has a single value.
        """
        weight = self.weight_of_pass()
        if self.gain is not None:
            outputs = int(self._transposed)  # the weight's dimension of output channels
            weight = weight * self.gain.view([-1 if d == outputs else 1 for d in range(weight.dim())])
        if not self.training:
            return apply_layer(self.layer, x, weight, self.m - self.running_mean)
        rounded = torch.get_autocast_dtype(x.device.type) if is_autocast(x.device.type) else x.dtype
        with full_precision(x.device.type):
            output, mean = self._centred(x.to(rounded), weight)
        if output.numel() // len(mean) * processes() <= 1:
            raise ValueError("mean spectral norm needs more than one value per channel in training")
        self.running_mean.lerp_(mean, self.momentum)
        return output

    def _centred(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return h - E[h] + m, and E[h] without a gradient.

        h is computed in the precision of ``x``. The mean is computed in that of ``weight``, since sums over a batch in bf16
        are too coarse.
        """
        if isinstance(self.layer, nn.Linear):
            rounded = weight.to(x.dtype)  # with a gradient
            image = mean_over_processes(x.flatten(0, -2).mean(0, dtype=weight.dtype))
            mean = rounded.to(weight.dtype) @ image
            return F.linear(x, rounded, (self.m - mean).to(x.dtype)), mean.detach()
        x, arguments = pad_beyond_half(x, weight, arguments_of(self.layer))
        groups = (len(x),) if self._groups is None else self._groups
        output, mean = MeanSubtractedConvolution.apply(x, weight, self._rounded(weight, x.dtype), self.m, arguments, groups)
        return output, mean

    def _rounded(self, weight: Tensor, dtype: torch.dtype) -> RoundedWeight:
        """Return ``weight`` rounded to ``dtype``: once for all passes that share it."""
        if weight is not self._kept:  # this pass's own, or multiplied by the gain
            return round_weight(weight, dtype)
        if self._kept_rounded is None or self._kept_rounded.rounded.dtype != dtype:
            self._kept_rounded = round_weight(weight, dtype)
        return self._kept_rounded

    def share_weight(self, weight: Tensor | None) -> None:
        super().share_weight(weight)
        self._kept_rounded = None


@contextmanager
def groups_of_equal_weight(network: nn.Module, sizes: tuple[int, ...]) -> Iterator[None]:
    """Within the block, take each mean of a convolution as the mean of those of consecutive groups of ``sizes`` images.

    A few real images then count as much as many fakes, as in a batch with as many of each.
    """
    layers = [m for m in network.modules() if isinstance(m, MeanSpectralNorm) and not isinstance(m.layer, nn.Linear)]
    for layer in layers:
        layer._groups = sizes
    try:
        yield
    finally:
        for layer in layers:
            layer._groups = None


class MeanShift(nn.Module):
    """h -> h - E[h] + m (Eq. 7) for an h (B, C, H, W) that is not the output of one layer, such as DenseNet's concatenations.

    E is the mean of each channel over batch, positions and processes; in evaluation mode it is the running mean. m is learned.
    With ``gain``, the output is gain (h - E[h]) + m, as in MeanSpectralNorm.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, gain: bool = False) -> None:
        """``momentum`` is the weight of the newest batch in the running mean, as in torch's BatchNorm."""
        super().__init__()
        self.momentum = momentum
        self.m = nn.Parameter(torch.zeros(channels))
        self.gain = nn.Parameter(torch.ones(channels)) if gain else None
        self.running_mean: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, C, H, W). Raises ValueError in training when a channel has a single value."""
        if self.gain is not None:
            h = h * self.gain.to(h.dtype).view(1, -1, 1, 1)
        if not self.training:
            return h + (self.m - self.running_mean).to(h.dtype).view(1, -1, 1, 1)
        if h.numel() // h.shape[1] * processes() <= 1:
            raise ValueError("centring needs more than one value per channel in training")
        output: Tensor
        output, mean = MeanSubtraction.apply(h, self.m)
        self.running_mean.lerp_(mean, self.momentum)
        return output
