"""The paper's classifiers, each under any norm: 3-layer CNN, VGG-7 and the 100-layer DenseNet-BC; their weight update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.models.convolution import FastConv2d
from gan.models.memory_layout import Flatten
from gan.models.norms import SpectralNorm, iterate_explicitly, normalize, normalize_input, power_iterate, weight_norm
from study.config import ModelName, Variant
from study.dropout import KeyedDropout

SLOPE = 0.1  # negative slope of LeakyReLU, the activation of all models in the paper


@dataclass(frozen=True)
class Details:
    """What a network has besides its shape and norm; the defaults are as the paper writes it."""

    gain: bool = False  # MSN: a learned factor per channel
    relu: bool = False  # ReLU in place of LeakyReLU
    dropout: float = 0.0  # share of values zeroed after each convolution's activation
    plain_output: bool = False  # no norm in the last dense layer

    def activation(self) -> nn.Module:
        return nn.ReLU(inplace=True) if self.relu else nn.LeakyReLU(SLOPE, inplace=True)


def cnn3(
    norm: str, *, variant: Variant = "full", gain: bool = False, channels: int = 1, size: int = 28, classes: int = 10
) -> nn.Module:
    """Return the paper's network for MNIST: images (B, channels, size, size) to logits (B, classes).

    Convolutions (kernel/stride, maps) 5/1 16, 3/1 32 and 4/2 32, each padded by 2; one dense layer. No pooling, no dropout.
    Its ``variant`` changes nothing: the authors released this network as the paper describes it.
    """
    convolutions = [(16, 5, 1, 2, False), (32, 3, 1, 2, False), (32, 4, 2, 2, False)]
    return _convolutional(convolutions, norm, Details(gain=gain), channels, size, classes)


def vgg7(
    norm: str, *, variant: Variant = "full", gain: bool = False, channels: int = 3, size: int = 32, classes: int = 10
) -> nn.Module:
    """Return the paper's network for SVHN: images (B, channels, size, size) to logits (B, classes).

    3x3 convolutions of 32, 32, 64, 64, 128 and 256 maps; one dense layer. 2x2 maximum pooling follows the second, fourth,
    fifth and sixth convolution. All but the sixth are padded.

    ``released``: the dense layer has no norm; under BN, ReLU and dropout of 0.3 follow each convolution.
    """
    maps = [(32, 1, False), (32, 1, True), (64, 1, False), (64, 1, True), (128, 1, True), (256, 0, True)]
    released, drops = variant == "released", variant == "released" and norm == "batch"
    details = Details(gain=gain, relu=drops, dropout=0.3 if drops else 0.0, plain_output=released)
    convolutions = [(after, 3, 1, padding, pool) for after, padding, pool in maps]
    return _convolutional(convolutions, norm, details, channels, size, classes)


def _convolutional(
    convolutions: Sequence[tuple[int, int, int, int, bool]], norm: str, details: Details, channels: int, size: int, classes: int
) -> nn.Module:
    """Return ``convolutions`` (maps, kernel, stride, padding, whether 2x2 maximum pooling follows) and one dense layer.

    Raises ValueError for images that are too small.
    """
    layers: list[nn.Module] = []
    before = channels
    for number, (after, kernel, stride, padding, pool) in enumerate(convolutions, 1):
        conv = FastConv2d(before, after, kernel, stride, padding)
        layers += [normalize(conv, norm, gain=details.gain), details.activation()]
        layers += [KeyedDropout(details.dropout, number=number)] if details.dropout else []
        layers += [nn.MaxPool2d(2)] if pool else []
        before = after
    features = nn.Sequential(*layers, Flatten()).eval()
    try:
        with torch.no_grad():
            width = features(torch.zeros(1, channels, size, size)).numel()
    except RuntimeError:
        raise ValueError(f"images of {size}x{size} are too small for this network") from None
    dense = normalize(nn.Linear(width, classes), "none" if details.plain_output else norm, output=True)
    return iterate_explicitly(nn.Sequential(*features, dense)).train()


class DenseLayer(nn.Module):
    """Map x (B, C, H, W) to (B, C + growth, H, W): norm, activation, 1x1 conv to 4 growth, norm, activation, 3x3 conv."""

    def __init__(self, channels: int, growth: int, norm: str, *, relu: bool) -> None:
        super().__init__()
        wide = 4 * growth
        self.layers = nn.Sequential(
            normalize_input(channels, norm),
            nn.ReLU() if relu else nn.LeakyReLU(SLOPE),  # not in place: x is used again
            normalize(nn.Conv2d(channels, wide, 1, bias=False), norm),
            Details(relu=relu).activation(),
            normalize(nn.Conv2d(wide, growth, 3, padding=1, bias=False), weight_norm(norm)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet_bc(
    norm: str,
    *,
    variant: Variant = "full",
    gain: bool = False,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    growth: int = 12,
) -> nn.Module:
    """Return the paper's network for CIFAR-10: images (B, channels, size, size) to logits (B, classes).

    DenseNet-BC (Huang et al. 2017) of 100 layers: three blocks of 16 dense layers, bottleneck 4, compression 0.8, 24 maps in
    the stem; only the classifier has a bias. MSN subtracts its mean where BatchNorm stands, before the activation, and
    normalises the weight of the convolution after it.

    ``published`` is the variant whose parameters the paper counts: BatchNorm stays inside the dense layers, and only the
    stem, the two transitions, the last norm and the classifier are under ``norm``. ``full`` has ``norm`` everywhere.
    ``released`` is ``published`` with ReLU, and under MSN with a classifier without a norm.
    """
    released = variant == "released"
    details = Details(gain=gain, relu=released, plain_output=released and norm.startswith("mean_"))
    weights, inner = weight_norm(norm), norm if variant == "full" else "batch"
    width = 24
    layers: list[nn.Module] = [normalize(nn.Conv2d(channels, width, 3, padding=1, bias=False), weights)]
    for block in range(3):
        for _ in range(16):
            layers.append(DenseLayer(width, growth, inner, relu=details.relu))
            width += growth
        layers += [normalize_input(width, norm, gain=gain), details.activation()]
        if block < 2:
            narrow = int(width * 0.8)
            layers += [normalize(nn.Conv2d(width, narrow, 1, bias=False), weights), nn.AvgPool2d(2)]
            width = narrow
    if size < 4:
        raise ValueError(f"images of {size}x{size} are too small for this network")
    dense = normalize(nn.Linear(width, classes), "none" if details.plain_output else norm, output=True)
    return iterate_explicitly(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense))


BUILDERS: dict[ModelName, Callable[..., nn.Module]] = {"cnn3": cnn3, "vgg7": vgg7, "densenet_bc": densenet_bc}


def build_classifier(
    name: ModelName,
    norm: str,
    *,
    variant: Variant = "full",
    gain: bool = False,
    channels: int,
    size: int,
    classes: int,
    seed: int,
) -> nn.Module:
    """Return a classifier with torch's default initial weights, which depend on ``seed`` alone.

    Raises ValueError for images that are too small for the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[name](norm, variant=variant, gain=gain, channels=channels, size=size, classes=classes)


@dataclass(frozen=True)
class WeightedLayer:
    """A layer with a weight, and its number, by which the paper's figures name it."""

    number: int
    name: str
    module: nn.Module

    @property
    def parameter(self) -> Tensor:
        """The trained weight W."""
        layer = self.module.layer if isinstance(self.module, SpectralNorm) else self.module
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def stable_rank(self) -> float:
        """The squared Frobenius norm of W as a matrix (outputs, rest) over its squared sigma: 0 for W = 0, else 1 to its rank.

        It tells how many directions the layer passes at about the slope of the largest.
        """
        singular = torch.linalg.svdvals(self.parameter.detach().float().flatten(1))
        return float(((singular / singular[0].clamp_min(torch.finfo(singular.dtype).tiny)) ** 2).sum())

    @property
    def estimated_sigma(self) -> float | None:
        """The sigma by which SN and MSN divide W at present; None under other norms."""
        return float(self.module.sigma().detach()) if isinstance(self.module, SpectralNorm) else None


def weighted_layers(network: nn.Module) -> list[WeightedLayer]:
    """Return convolutions and dense layers in the order of the forward pass, numbered from 1; DenseNet-BC has 100."""
    found: list[WeightedLayer] = []
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if isinstance(module, SpectralNorm):
            inside.add(module.layer)
        if isinstance(module, SpectralNorm | nn.Conv2d | nn.Linear) and module not in inside:
            found.append(WeightedLayer(len(found) + 1, name, module))
    return found


def update_classifier(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    autocast: torch.autocast,
    average_gradients: Callable[[nn.Module], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Take one step on the mean cross entropy of ``images`` (B, C, S, S) with ``labels`` (B,), an int from 0 each.

    Returns scalars: the loss, the accuracy (0 to 1) and, where ``average_gradients`` replaces the gradients by their means over
    processes and returns their norm, that norm.
    """
    power_iterate(network)  # one iteration in each spectrally normalised layer, or its projection
    network.zero_grad()
    with autocast:
        logits: Tensor = network(images)  # B classes
    logits = logits.to(images.dtype)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    metrics = {"loss": loss.detach(), "accuracy": (logits.detach().argmax(1) == labels).to(images.dtype).mean()}
    if average_gradients is not None:
        metrics["grad_norm"] = average_gradients(network)
    optimizer.step()
    return metrics
