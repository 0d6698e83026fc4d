"""The paper's classifiers: 3-layer CNN, VGG-7 and the 100-layer DenseNet-BC, each under any norm."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.norms import SpectralNorm, normalize, normalize_input, power_iterate

SLOPE = 0.1  # of LeakyReLU, which the paper uses in all its models
ModelName: TypeAlias = Literal["cnn3", "vgg7", "densenet_bc"]
Variant: TypeAlias = Literal["full", "published"]


def _activation() -> nn.Module:
    return nn.LeakyReLU(SLOPE, inplace=True)


def _feature_size(features: nn.Module, channels: int, size: int) -> int:
    """Values that ``features`` makes of one image; raises ValueError for an image that is too small."""
    try:
        with torch.no_grad():
            return features.eval()(torch.zeros(1, channels, size, size)).numel()
    except RuntimeError:
        raise ValueError(f"images of {size}x{size} are too small for this network") from None
    finally:
        features.train()


def cnn3(norm: str, *, channels: int = 1, size: int = 28, classes: int = 10) -> nn.Module:
    """Images (B, channels, size, size) to logits (B, classes): conv 5/1 16, 3/1 32 and 4/2 32, all padded by 2; dense.

    MNIST's in the paper; neither pooling nor dropout.
    """
    layers: list[nn.Module] = []
    before = channels
    for kernel, stride, after in ((5, 1, 16), (3, 1, 32), (4, 2, 32)):
        layers += [normalize(nn.Conv2d(before, after, kernel, stride, 2), norm), _activation()]
        before = after
    return _with_classifier(layers, norm, channels, size, classes)


def vgg7(norm: str, *, channels: int = 3, size: int = 32, classes: int = 10) -> nn.Module:
    """Images (B, channels, size, size) to logits (B, classes): conv 3/1 of 32, 32, 64, 64, 128 and 256 maps; dense.

    Maximum over 2x2 after the second, fourth, fifth and sixth, which alone is not padded. SVHN's in the paper.
    """
    layers: list[nn.Module] = []
    before = channels
    for after, padding, pool in ((32, 1, False), (32, 1, True), (64, 1, False), (64, 1, True), (128, 1, True), (256, 0, True)):
        layers += [normalize(nn.Conv2d(before, after, 3, 1, padding), norm), _activation()]
        layers += [nn.MaxPool2d(2)] if pool else []
        before = after
    return _with_classifier(layers, norm, channels, size, classes)


def _with_classifier(layers: list[nn.Module], norm: str, channels: int, size: int, classes: int) -> nn.Module:
    features = nn.Sequential(*layers, nn.Flatten())
    dense = nn.Linear(_feature_size(features, channels, size), classes)
    return nn.Sequential(*features, normalize(dense, norm, output=True))


def _in_weights(norm: str) -> str:
    """The part of ``norm`` that is in a layer's weight: where it stands before the activation, the rest does so too."""
    return "spectral" if norm in ("spectral", "mean_spectral") else "none"


class DenseLayer(nn.Module):
    """x (B, C, H, W) to x and ``growth`` more maps: norm, activation, conv 1/1 to 4 x growth, norm, activation, conv 3/1."""

    def __init__(self, channels: int, growth: int, norm: str) -> None:
        super().__init__()
        wide = 4 * growth
        self.layers = nn.Sequential(
            normalize_input(channels, norm),
            _not_in_place(),
            normalize(nn.Conv2d(channels, wide, 1, bias=False), norm),
            _activation(),
            normalize(nn.Conv2d(wide, growth, 3, padding=1, bias=False), _in_weights(norm)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def _not_in_place() -> nn.Module:
    """For an input that is used again."""
    return nn.LeakyReLU(SLOPE)


def densenet_bc(
    norm: str, *, variant: Variant = "full", channels: int = 3, size: int = 32, classes: int = 10, growth: int = 12
) -> nn.Module:
    """Images (B, channels, size, size) to logits (B, classes): DenseNet-BC (Huang et al. 2017) of 100 layers.

    Three blocks of 16 dense layers, bottleneck 4, compression 0.8, 24 maps at first; no biases but the classifier's. MSN's
    mean is taken where BatchNorm stands, before the activation, and its spectral norm in the convolution after it.

    ``published`` is the variant whose parameters the paper counted: BatchNorm stays inside the dense layers, and only the
    stem, the two transitions, the last norm and the classifier are under ``norm``. ``full`` has ``norm`` everywhere.
    CIFAR-10's in the paper.
    """
    weights, inner = _in_weights(norm), norm if variant == "full" else "batch"
    width = 24
    layers: list[nn.Module] = [normalize(nn.Conv2d(channels, width, 3, padding=1, bias=False), weights)]
    for block in range(3):
        for _ in range(16):
            layers.append(DenseLayer(width, growth, inner))
            width += growth
        layers += [normalize_input(width, norm), _activation()]
        if block < 2:
            narrow = int(width * 0.8)
            layers += [normalize(nn.Conv2d(width, narrow, 1, bias=False), weights), nn.AvgPool2d(2)]
            width = narrow
    if size < 4:
        raise ValueError(f"images of {size}x{size} are too small for this network")
    dense = normalize(nn.Linear(width, classes), norm, output=True)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense)


BUILDERS: dict[ModelName, Callable[..., nn.Module]] = {"cnn3": cnn3, "vgg7": vgg7, "densenet_bc": densenet_bc}


def build_classifier(
    name: ModelName, norm: str, *, variant: Variant = "full", channels: int, size: int, classes: int, seed: int
) -> nn.Module:
    """A classifier with torch's default initial weights, a function of ``seed`` alone.

    Raises ValueError for images that are too small for it.
    """
    options = {"variant": variant} if name == "densenet_bc" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[name](norm, channels=channels, size=size, classes=classes, **options)


class Weighted:
    """One layer of a network that has a weight, found by its number: how the paper's figures name layers."""

    def __init__(self, number: int, name: str, module: nn.Module) -> None:
        self.number, self.name, self.module = number, name, module

    @property
    def parameter(self) -> Tensor:
        """W, which is trained."""
        layer = self.module.layer if isinstance(self.module, SpectralNorm) else self.module
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @torch.no_grad()
    def weight(self) -> Tensor:
        """What the layer computes with: W / sigma(W) under SN and MSN, else W."""
        return self.module.weight() if isinstance(self.module, SpectralNorm) else self.parameter


def weighted_layers(network: nn.Module) -> list[Weighted]:
    """Convolutions and dense layers in the order in which an image passes them, numbered from 1: DenseNet-BC has 100."""
    found: list[Weighted] = []
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if isinstance(module, SpectralNorm):
            inside.add(module.layer)
        if isinstance(module, SpectralNorm | nn.Conv2d | nn.Linear) and module not in inside:
            found.append(Weighted(len(found) + 1, name, module))
    return found


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy."""
    return F.cross_entropy(logits, labels)


def find_gradients(network: nn.Module, images: Tensor, labels: Tensor, autocast: torch.autocast) -> tuple[Tensor, Tensor]:
    """Loss and logits (B, classes) of a batch, in the weights' precision; the loss's gradients are left in the parameters.

    One power iteration in each spectrally normalised layer comes first.
    """
    power_iterate(network)
    network.zero_grad()
    with autocast:
        logits: Tensor = network(images)
    logits = logits.to(images.dtype)
    loss = loss_of(logits, labels)
    loss.backward()
    return loss.detach(), logits.detach()
