"""The settings of the two networks: their sizes and norms, and the norms that are refused."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar

from gan.utils.setting_fields import setting
from gan.utils.settings import Norm, Require

MIXING_NORMS = ("batch", "mean_spectral", "mean_spectral_projected")  # an image's output depends on the other images of its batch
LIPSCHITZ_NORMS = ("spectral", "mean_spectral", "spectral_projected", "mean_spectral_projected")  # bound each weight's sigma


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The part of ``model`` that both networks have."""

    channels: int
    norm: Norm
    layer_norms: list[Norm] | None = setting(
        None, "norm of each layer from input to output, one of which must be that of norm; null: norm in all layers"
    )
    gain: bool = setting(
        False, "mean_spectral: multiply the centred output of each channel by a learned factor, as the paper's released code does"
    )
    layers: ClassVar[int]  # with the output layer, whose mean is never subtracted

    @property
    def norms(self) -> list[Norm]:
        """The norms that the network has, from input to output."""
        return [self.norm] if self.layer_norms is None else self.layer_norms

    @property
    def mixes_images(self) -> bool:
        """Whether the output for an image depends on the other images of its batch."""
        return any(norm in MIXING_NORMS for norm in self.norms)

    def describe_norms(self) -> str:
        """Return the norms in words, such as "spectral", or "3 x spectral, mean_spectral, spectral"."""
        runs = [(norm, len(list(same))) for norm, same in groupby(self.norms)]
        return ", ".join(norm if count == 1 else f"{count} x {norm}" for norm, count in runs)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(NetworkConfig):
    channels: int = setting(64, "feature maps before the image; 8 times as many at the first layer", at_least=1, at_most=2**13)
    norm: Norm = setting("batch", "norm of each hidden layer")
    layers: ClassVar[int] = 5


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(NetworkConfig):
    channels: int = setting(64, "feature maps of the first layer; 8 times as many in the last", at_least=1, at_most=2**13)
    norm: Norm = setting("mean_spectral", "norm of each layer")
    layers: ClassVar[int] = 8


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    latent_dim: int = setting(128, "dimension of the noise z ~ N(0, I)", at_least=1, at_most=2**16)
    init_std: float = setting(0.02, "initial weights ~ N(0, init_std^2), biases 0", above=0)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


def check_norms(section: str, network: NetworkConfig, require: Require) -> None:
    """Refuse, by ``require``, norms of the network in ``section`` that do not fit its layers."""
    names, layers = network.layer_norms, network.layers
    if names is not None:
        require(
            len(names) == layers,
            f"{section}.layer_norms",
            f"{len(names)} norms, but the network has {layers} layers. Give one for each, from input to output.",
        )
        require(
            names[-1] in ("none", "spectral", "spectral_projected"),
            f"{section}.layer_norms",
            f"the output layer has no mean to subtract and no batch norm, so its norm must be none or spectral, not {names[-1]}.",
        )
        require(
            network.norm in names,
            f"{section}.layer_norms",
            f"no layer has {section}.norm={network.norm}, by which tables name the run. Set that to one of the norms listed.",
        )
    require(
        not network.gain or any(norm.startswith("mean_") for norm in network.norms),
        f"{section}.gain",
        f"only mean_spectral has a gain, but {section}.norm={network.norm}. Set {section}.gain=false.",
    )
