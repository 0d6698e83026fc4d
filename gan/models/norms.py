"""Normalisation of a layer: batch norm, spectral norm and mean spectral norm, interchangeable.

In training mode the statistics that mix images are those of the whole batch over all processes, if torch.distributed
is initialised: every process must then run the same layers on the same number of images.
"""

from torch import nn

from gan.models.batch_norm import BatchNorm
from gan.models.convolution import Layer
from gan.models.mean_spectral_norm import MeanShift, MeanSpectralNorm, groups_of_equal_weight
from gan.models.projected_norms import ProjectedMeanSpectralNorm, ProjectedSpectralNorm
from gan.models.spectral_norm import (
    SpectralNorm,
    iterate_explicitly,
    power_iterate,
    require_supported,
    shared_spectral_weights,
)

__all__ = [
    "BatchNorm", "Layer", "MeanShift", "MeanSpectralNorm", "ProjectedMeanSpectralNorm", "ProjectedSpectralNorm", "SpectralNorm",
    "groups_of_equal_weight", "iterate_explicitly", "normalize", "normalize_input", "power_iterate", "shared_spectral_weights",
    "weight_norm",
]  # fmt: skip
EXPECTED = "expected none, batch, spectral, mean_spectral, spectral_projected or mean_spectral_projected"


def weight_norm(norm: str) -> str:
    """Return the part of ``norm`` that acts on a layer's weight: none, spectral or spectral_projected."""
    return "none" if norm == "batch" else norm.removeprefix("mean_")


def normalize(
    layer: Layer, norm: str, *, output: bool = False, gain: bool = False, twice_differentiable: bool = False
) -> nn.Module:
    """Return ``layer``, whose weight has been initialised, under ``norm``: none, batch, spectral or mean_spectral, or one
    of the last two as a projection (spectral_projected, mean_spectral_projected).

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
    part = weight_norm(norm) if output else norm
    if part == "spectral":
        return SpectralNorm(layer)
    if part == "spectral_projected":
        return ProjectedSpectralNorm(layer)
    if part == "mean_spectral":
        return MeanSpectralNorm(layer, gain=gain)
    if part == "mean_spectral_projected":
        return ProjectedMeanSpectralNorm(layer, gain=gain)
    raise ValueError(f"norm {norm!r}: {EXPECTED}")


def normalize_input(channels: int, norm: str, *, gain: bool = False) -> nn.Module:
    """Return the module before the activation of a network that normalises a layer's input (B, ``channels``, H, W).

    This is the order of He et al. 2016 ("Identity mappings") and DenseNet. For MSN it is the mean subtraction alone, since
    the other part is in the weight. ``gain`` is that of ``normalize``.

    Raises ValueError for an unknown norm.
    """
    if norm == "batch":
        return BatchNorm(channels)
    if norm in ("mean_spectral", "mean_spectral_projected"):
        return MeanShift(channels, gain=gain)
    if norm in ("none", "spectral", "spectral_projected"):
        return nn.Identity()
    raise ValueError(f"norm {norm!r}: {EXPECTED}")
