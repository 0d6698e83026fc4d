"""The classifiers that the paper's authors released: read one safely, and measure its accuracy in our networks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints
from warnings import catch_warnings

import torch
from torch import Tensor, nn

from gan.data.datasets import ImageDataset
from gan.data.sources import open_source
from gan.models.norms import BatchNorm, MeanSpectralNorm, SpectralNorm
from gan.utils.errors import UserError
from gan.utils.progress import follow
from gan.utils.safe_reading import is_number, is_whole, printable, read_file
from gan.utils.settings import DataConfig
from gan.utils.tensor_files import load_tensors
from study.config import MODEL_NAMES, NORM_NAMES, StudyConfig
from study.data import normalised
from study.models import build_classifier, weighted_layers

MAX_BYTES = 2**24  # of a file; the largest of the readable networks takes 2 MB
_BATCH = 250  # images in a forward pass
# What the authors' code subtracts from pixels of 0 to 1, and divides them by.
INPUTS: dict[str, tuple[list[float], list[float]]] = {
    "cnn3": ([0.4914], [0.2023]),
    "vgg7": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
}
_LAYER = {"weight", "bias"}
_NORM = {"weight", "bias", "running_mean", "running_var"}
Group = Mapping[str, Tensor]  # the tensors of one layer, by the last part of their names


@dataclass(frozen=True)
class ReleasedClassifier:
    """What one file holds: the layers with weights and the norms between them, in the order of the forward pass."""

    path: Path
    layers: list[Group]
    norms: list[Group]
    norm: str  # batch, spectral, mean_spectral or none, by which tensors there are
    accuracy: float  # in percent, of the authors' test images: the best epoch's
    epoch: int


def read_released(path: Path) -> ReleasedClassifier:
    """Return the classifier in a .t7 file, which runs no code. Raises UserError for any other file."""
    try:
        with catch_warnings(action="ignore"):  # torch warns, in several lines, of pickle protocols that it then refuses
            found = load_tensors(read_file(path, MAX_BYTES))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Give a .t7 file of the authors' repository.") from None
    except ValueError:  # torch's message advises to load the file with the code in it
        _refuse(path, "it is damaged, or holds more than tensors and plain values; no code in it was run")
    if not isinstance(found, dict) or not isinstance(found.get("net"), dict):
        _refuse(path, "it is no dictionary with net, acc and epoch")
    accuracy: Any = found.get("acc")
    epoch: Any = found.get("epoch")
    if not is_number(accuracy) or not is_whole(epoch):
        _refuse(path, "acc and epoch are not numbers")
    groups = _groups(path, found["net"])
    norms = [group for group in groups if "running_mean" in group]
    layers = [group for group in groups if "running_mean" not in group]
    spectral = any("renorm" in group for group in layers)
    norm = ("mean_spectral" if norms else "spectral") if spectral else "batch" if norms else "none"
    return ReleasedClassifier(path, layers, norms, norm, float(accuracy), epoch)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise UserError(f"{path}: not a released classifier ({reason}). Give a .t7 file of the authors' repository.")


def _groups(path: Path, tensors: dict[Any, Any]) -> list[Group]:
    """Return the tensors of each layer, checked for their names; ``renorm`` and counters carry nothing."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            _refuse(path, "net is no dictionary of tensors")
        layer, _, name = key.rpartition(".")
        if name not in _NORM | {"renorm", "num_batches_tracked"}:
            _refuse(path, f"unknown tensor {printable(key)}")
        if name != "num_batches_tracked":
            found.setdefault(layer, {})[name] = tensor
    for layer, group in found.items():
        if missing := (_NORM if "running_mean" in group else _LAYER) - group.keys():
            _refuse(path, f"{printable(layer)} has no {' and no '.join(sorted(missing))}")
    return list(found.values())


def build_released(released: ReleasedClassifier, config: StudyConfig, norm: str, classes: int) -> nn.Module:
    """Return our network with the weights of ``released`` under ``norm``, in evaluation mode.

    The authors' running mean of MSN is that of the convolution with its bias, before the gain; ours is that of the gain times
    the convolution without a bias. The stored weights have been projected already. They are stored as they are, and the network
    divides them by their largest singular value as under any weights.

    Raises UserError for weights of another network.
    """
    model, path = config.model.name, released.path
    channels = released.layers[0]["weight"].shape[1] if released.layers and released.layers[0]["weight"].dim() == 4 else 0
    if channels not in (1, 3):
        _refuse(path, "its first layer is no convolution of grey or colour images")
    options: Any = {"channels": channels, "size": config.data.image_size, "classes": classes, "seed": config.seed}
    try:
        network = build_classifier(model, norm, variant="released", gain=True, **options).eval()
    except ValueError as error:
        raise UserError(f"data.image_size={config.data.image_size}: {error}.") from None
    layers = weighted_layers(network)
    norms = [module for module in network.modules() if isinstance(module, BatchNorm | MeanSpectralNorm)]
    if (len(layers), len(norms)) != (len(released.layers), len(released.norms)):
        ours = f"{len(layers)} layers and {len(norms)} norms"
        _refuse_network(path, model, f"{len(released.layers)} layers and {len(released.norms)} norms, expected {ours}")
    for layer, theirs in zip(layers, released.layers, strict=True):
        inner = layer.module.layer if isinstance(layer.module, SpectralNorm) else layer.module
        for name in ("weight", "bias"):
            _copy(path, model, f"layer {layer.number}, {name}", getattr(inner, name), theirs[name])
    for number, (module, theirs) in enumerate(zip(norms, released.norms, strict=True), 1):
        if isinstance(module, BatchNorm):
            for name in sorted(_NORM):
                _copy(path, model, f"norm {number}, {name}", getattr(module, name), theirs[name])
            continue
        for name, target in {"weight": module.gain, "bias": module.m, "running_mean": module.running_mean}.items():
            _copy(path, model, f"norm {number}, {name}", target, theirs[name])
        assert module.layer.bias is not None and module.gain is not None
        module.running_mean.copy_(((module.running_mean - module.layer.bias) * module.gain).detach())
    for layer in layers:
        if isinstance(layer.module, SpectralNorm):
            layer.module.power_iteration(500)  # in evaluation mode, this changes no weight
    return network


def _refuse_network(path: Path, model: str, reason: str) -> NoReturn:
    raise UserError(f"{path}: not a {MODEL_NAMES[model]} ({reason}). Give --config of its network, and images of its classes.")


@torch.no_grad()
def _copy(path: Path, model: str, what: str, target: Tensor | None, source: Tensor) -> None:
    assert target is not None
    if source.layout != torch.strided or source.device.type != "cpu":
        _refuse_network(path, model, f"{what} is no dense tensor")
    if source.shape != target.shape:
        _refuse_network(path, model, f"{what} is {list(source.shape)}, expected {list(target.shape)}")
    if not source.is_floating_point() or not source.isfinite().all():
        _refuse_network(path, model, f"{what} has values that are not finite floating-point numbers")
    target.copy_(source)
    if not target.isfinite().all():
        _refuse_network(path, model, f"{what} has values beyond float32")


def evaluate_released(path: Path, config: StudyConfig, norm: str | None, data: str) -> str:
    """Return the accuracy of the classifier in ``path`` on the images ``data``, beside the stored one, as text.

    ``data`` is a folder or zip of class folders, or the name of a data set, of which the test split is taken. ``norm`` None is
    that of the file, SN and MSN as projections.

    Raises UserError as ``read_released`` and ``build_released``, and for another norm.
    """
    if config.model.name not in INPUTS:
        raise UserError(f"model.name={config.model.name}: released files of {' and '.join(INPUTS)} are read.")
    released = read_released(path)
    chosen = norm or released.norm + "_projected" * released.norm.endswith("spectral")
    if chosen.removesuffix("_projected") != released.norm:
        raise UserError(f"{path}: a classifier with norm {released.norm}, not --norm {chosen}. Leave --norm out.")
    source = open_source(_test_data(data, config))
    classes = source.labels().classes
    network = build_released(released, config, chosen, len(classes))
    channels = released.layers[0]["weight"].shape[1]
    images = ImageDataset(source, size=config.data.image_size, channels=channels)
    correct, confidence = _classify(network, images, config)
    if not math.isfinite(confidence):
        _refuse(path, "its outputs are not finite numbers")
    layers = weighted_layers(network)
    lines = [
        f"{path.name}: {MODEL_NAMES[config.model.name]} under {NORM_NAMES[chosen]}",
        f"accuracy stored           {released.accuracy:.2f}% (epoch {released.epoch}, the best on the authors' test images)",
        f"accuracy measured here    {100 * correct / len(images):.2f}% ({correct:,} of {len(images):,} images of {data})",
        f"mean largest probability  {confidence:.3f}",
        f"stable rank by layer      {', '.join(f'{layer.stable_rank:.1f} of {len(layer.parameter)}' for layer in layers)}",
    ]
    if spectral := [layer for layer in layers if isinstance(layer.module, SpectralNorm)]:
        sigmas = [float(torch.linalg.matrix_norm(layer.parameter.detach().flatten(1), 2)) for layer in spectral]
        lines.append(f"sigma of stored weights   {min(sigmas):.5f} to {max(sigmas):.5f} (1: projected before they were stored)")
    gains = [
        module.gain.detach() for module in network.modules() if isinstance(module, MeanSpectralNorm) and module.gain is not None
    ]
    if gains:
        lines.append(f"mean gain by norm         {', '.join(f'{float(gain.abs().mean()):.1f}' for gain in gains)} (1: none)")
    return "\n".join(lines)


def _test_data(data: str, config: StudyConfig) -> DataConfig:
    size = config.data.image_size
    if Path(data).exists():
        return DataConfig(name="folder", path=data, image_size=size)
    if data not in get_args(get_type_hints(DataConfig)["name"]) or data in ("digits", "folder"):
        raise UserError(f"{data}: neither a folder or .zip of class folders nor a data set with a test split.")
    return DataConfig(name=data, split="test", path=config.data.path, image_size=size)  # type: ignore[arg-type]


@torch.no_grad()
def _classify(network: nn.Module, images: ImageDataset, config: StudyConfig) -> tuple[int, float]:
    """Return the number of correct answers and the mean of the largest class probability."""
    pixels = images.decode_all(follow, config.data.workers)
    answers = torch.from_numpy(images.labels.class_indices)
    mean, std = config.data.mean, config.data.std
    if mean is None:
        mean, std = INPUTS[config.model.name]
    correct, confidence = 0, 0.0
    for batch, expected in zip(pixels.split(_BATCH), answers.split(_BATCH), strict=True):
        probabilities = network(normalised(batch.float() / 127.5 - 1, mean, std)).softmax(1)
        largest, chosen = probabilities.max(1)
        correct += int((chosen == expected).sum())
        confidence += float(largest.double().sum())
    return correct, confidence / len(images)
