"""Build the networks that a configuration describes: the only module of this room that knows the settings."""

import torch

from gan.config import GanConfig
from gan.models.dcgan import Discriminator, Generator


def build_generator(config: GanConfig) -> Generator:
    """Return the generator that ``config`` describes. Its initial weights are a function of the seed alone.

    ``config.data.channels`` must have been resolved.
    """
    assert config.data.channels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Generator(
            latent_dim=config.model.latent_dim,
            channels=config.model.generator.channels,
            image_channels=config.data.channels,
            image_size=config.data.image_size,
            norm=config.model.generator.layer_norms or config.model.generator.norm,
            gain=config.model.generator.gain,
            init_std=config.model.init_std,
        )


def build_discriminator(config: GanConfig) -> Discriminator:
    """Return the discriminator that ``config`` describes, as ``build_generator``, from another random sequence."""
    assert config.data.channels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1_000_003)
        return Discriminator(
            channels=config.model.discriminator.channels,
            image_channels=config.data.channels,
            image_size=config.data.image_size,
            norm=config.model.discriminator.layer_norms or config.model.discriminator.norm,
            gain=config.model.discriminator.gain,
            init_std=config.model.init_std,
            twice_differentiable=config.loss.name == "wgan-gp",
        )
