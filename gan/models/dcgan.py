"""The standard CNN of the SNGAN paper (Miyato et al. 2018, Table 3) for generator and discriminator, of any width and size."""

from collections.abc import Sequence

from torch import Tensor, nn

from gan.models.convolution import FastConv2d, FastConvTranspose2d
from gan.models.memory_layout import Flatten
from gan.models.norms import Layer, iterate_explicitly, normalize

SLOPE = 0.1  # of LeakyReLU, in the discriminator


def _initialise(layer: Layer, std: float) -> Layer:
    nn.init.normal_(layer.weight, 0.0, std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _norm_of_each(norm: str | Sequence[str], layers: int) -> list[str]:
    """Return one norm per layer. Raises ValueError for a list of another length."""
    norms = [norm] * layers if isinstance(norm, str) else list(norm)
    if len(norms) != layers:
        raise ValueError(f"{len(norms)} norms, expected one for each of the {layers} layers")
    return norms


def _uses_bias(norm: str) -> bool:
    return norm in ("none", "spectral", "spectral_projected")


class Generator(nn.Module):
    """Generator: noise (B, latent_dim) to images (B, image_channels, S, S) in [-1, 1].

    dense -> 8c x S/8 x S/8; three times ConvTranspose 4/2 to 4c, 2c, c; conv 3/1; tanh. Each layer but the last under
    its norm and ReLU. A bias that the norm's own would cancel is left out.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        channels: int,
        image_channels: int,
        image_size: int,
        norm: str | Sequence[str],
        gain: bool = False,
        init_std: float = 0.02,
    ) -> None:
        """``norm`` is that of all layers, or one for each of the 5; ``gain`` is that of mean_spectral (see ``normalize``)."""
        super().__init__()
        self.latent_dim = latent_dim
        stem, c = image_size // 8, channels
        first, *others, last = _norm_of_each(norm, 5)
        dense = nn.Linear(latent_dim, 8 * c * stem * stem, bias=_uses_bias(first))
        layers: list[nn.Module] = [
            normalize(_initialise(dense, init_std), first, gain=gain),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (8 * c, stem, stem)),
        ]
        for wide, own in zip((8 * c, 4 * c, 2 * c), others, strict=True):
            up = FastConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=_uses_bias(own))
            layers += [normalize(_initialise(up, init_std), own, gain=gain), nn.ReLU(inplace=True)]
        image = FastConv2d(c, image_channels, 3, 1, 1)
        layers += [normalize(_initialise(image, init_std), last, output=True), nn.Tanh()]
        self.layers = iterate_explicitly(nn.Sequential(*layers))

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z)
        return images


class Discriminator(nn.Module):
    """Discriminator: images (B, image_channels, S, S) in [-1, 1] to logits (B,).

    conv 3/1 c, 4/2 c, 3/1 2c, 4/2 2c, 3/1 4c, 4/2 4c, 3/1 8c, each under its norm and LeakyReLU; then dense to 1.
    """

    def __init__(
        self,
        *,
        channels: int,
        image_channels: int,
        image_size: int,
        norm: str | Sequence[str],
        gain: bool = False,
        init_std: float = 0.02,
        twice_differentiable: bool = False,
    ) -> None:
        """``norm`` is that of all layers, or one for each of the 8; the other options are those of ``normalize``."""
        super().__init__()
        c = channels
        *hidden, last = _norm_of_each(norm, 8)
        layers: list[nn.Module] = []
        before = image_channels
        shapes = (3, 1, c), (4, 2, c), (3, 1, 2 * c), (4, 2, 2 * c), (3, 1, 4 * c), (4, 2, 4 * c), (3, 1, 8 * c)
        for (kernel, stride, after), own in zip(shapes, hidden, strict=True):
            conv = _initialise(FastConv2d(before, after, kernel, stride, 1), init_std)
            normalized = normalize(conv, own, gain=gain, twice_differentiable=twice_differentiable)
            layers += [normalized, nn.LeakyReLU(SLOPE, inplace=True)]
            before = after
        dense = _initialise(nn.Linear(8 * c * (image_size // 8) ** 2, 1), init_std)
        self.layers = iterate_explicitly(nn.Sequential(*layers, Flatten(), normalize(dense, last, output=True)))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores.squeeze(1)


def trainable_parameters(network: nn.Module) -> int:
    """Return the number of trainable scalars, as Table III of the MSN paper counts them."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
