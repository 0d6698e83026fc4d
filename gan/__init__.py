"""GANs with batch norm, spectral norm and mean spectral norm: the layers, and trained generators.

The layers work in a network of one's own. Each forward pass in training mode takes a power iteration, which keeps sigma up to
date::

    import torch
    from torch import nn
    from gan import MeanSpectralNorm, SpectralNorm

    network = nn.Sequential(
        MeanSpectralNorm(nn.Conv2d(3, 16, 4, stride=2, padding=1)), nn.LeakyReLU(0.1),
        nn.Flatten(), SpectralNorm(nn.Linear(16 * 16 * 16, 1)),
    )
    optimizer = torch.optim.Adam(network.parameters())
    for images in (torch.randn(8, 3, 32, 32) for _ in range(3)):
        optimizer.zero_grad()
        network(images).mean().backward()
        optimizer.step()

A trained generator is loaded from a run, a checkpoint, an export or hf://OWNER/NAME:
``load_generator("runs/x").sample(64, seed=0)``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gan.utils.requirements import check_python

check_python()

if TYPE_CHECKING:
    from gan.inference.generator import TrainedGenerator, load_generator
    from gan.models.batch_norm import BatchNorm
    from gan.models.mean_spectral_norm import MeanSpectralNorm
    from gan.models.norms import normalize
    from gan.models.spectral_norm import SpectralNorm, iterate_explicitly, power_iterate

    __version__: str

_MODULES = {
    "BatchNorm": "gan.models.batch_norm",
    "MeanSpectralNorm": "gan.models.mean_spectral_norm",
    "SpectralNorm": "gan.models.spectral_norm",
    "TrainedGenerator": "gan.inference.generator",
    "iterate_explicitly": "gan.models.spectral_norm",
    "load_generator": "gan.inference.generator",
    "normalize": "gan.models.norms",
    "power_iterate": "gan.models.spectral_norm",
}
__all__ = [
    "BatchNorm", "MeanSpectralNorm", "SpectralNorm", "TrainedGenerator", "__version__", "iterate_explicitly", "load_generator",
    "normalize", "power_iterate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Imported at the first use: torch takes seconds, and a mistyped setting should be reported at once.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("msngan")
        except PackageNotFoundError:
            return "unknown"  # a checkout that is not installed
    raise AttributeError(f"module 'gan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
