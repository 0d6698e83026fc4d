"""Normalisation of a layer: batch norm, spectral norm and mean spectral norm, interchangeable.

In training mode the statistics that mix images are those of the whole batch over all processes, if torch.distributed
is initialised: every process must then run the same layers on the same number of images.
"""

from torch import nn

from gan.models.batch_norm import BatchNorm
from gan.models.mean_spectral_norm import MeanShift, MeanSpectralNorm, kept_means
from gan.models.spectral_norm import (
    Layer,
    SpectralNorm,
    iterate_explicitly,
    power_iterate,
    require_supported,
    shared_spectral_weights,
)

__all__ = [
    "BatchNorm", "Layer", "MeanShift", "MeanSpectralNorm", "SpectralNorm", "iterate_explicitly", "kept_means",
    "normalize", "normalize_input", "power_iterate", "shared_spectral_weights",
]  # fmt: skip


def normalize(
    layer: Layer, norm: str, *, output: bool = False, gain: bool = False, twice_differentiable: bool = False
) -> nn.Module:
    """Return ``layer``, whose weight has been initialised, under ``norm``: none, batch, spectral or mean_spectral.

    The mean of a network's ``output`` layer is never subtracted: batch leaves that layer unchanged, and mean_spectral only
    divides its weight by sigma. (With real and fake images in separate batches, both would have the mean logit m.)
    ``gain`` gives mean_spectral a learned factor per channel; other norms ignore it. ``twice_differentiable`` selects
    implementations with a second derivative, which a gradient penalty needs.

    Raises ValueError for an unknown norm, TypeError for another layer than a Conv2d, ConvTranspose2d or Linear.
    """
    require_supported(layer)
    if norm == "none" or (norm == "batch" and output):
        return layer
    if norm == "batch":
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        return nn.Sequential(layer, BatchNorm(channels, twice_differentiable=twice_differentiable))
    if norm == "spectral" or (norm == "mean_spectral" and output):
        return SpectralNorm(layer)
    if norm == "mean_spectral":
        return MeanSpectralNorm(layer, gain=gain)
    raise ValueError(f"norm {norm!r}: expected none, batch, spectral or mean_spectral")


def normalize_input(channels: int, norm: str) -> nn.Module:
    """Return the module before the activation of a network that normalises a layer's input (B, ``channels``, H, W).

    This is the order of He et al. 2016 ("Identity mappings") and DenseNet. For MSN it is the mean subtraction alone, since
    the other part is in the weight.

    Raises ValueError for an unknown norm.
    """
    if norm == "batch":
        return BatchNorm(channels)
    if norm == "mean_spectral":
        return MeanShift(channels)
    if norm in ("none", "spectral"):
        return nn.Identity()
    raise ValueError(f"norm {norm!r}: expected none, batch, spectral or mean_spectral")
