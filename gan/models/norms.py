"""Normalisation of a layer: batch norm, spectral norm and mean spectral norm, interchangeable.

In training mode the statistics that mix images are those of the whole batch over all processes, if torch.distributed
is initialised: every process must then run the same layers on the same number of images.
"""

from torch import nn

from gan.models.batch_norm import BatchNorm
from gan.models.mean_spectral_norm import MeanShift, MeanSpectralNorm
from gan.models.spectral_norm import Layer, SpectralNorm, power_iterate, shared_spectral_weights

__all__ = [
    "BatchNorm", "Layer", "MeanShift", "MeanSpectralNorm", "SpectralNorm", "normalize", "normalize_input", "power_iterate",
    "shared_spectral_weights",
]  # fmt: skip


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
