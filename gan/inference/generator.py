"""Load a trained generator from a run, a checkpoint, an export or the Hugging Face Hub, and sample from it."""

import logging
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gan.config import GanConfig, load_config
from gan.inference import hub, sampling
from gan.models.build import build_generator
from gan.runs import checkpoints, scores
from gan.runs.manifest import MANIFEST, SEAL, read_consistently, read_verified, step_in_name
from gan.utils.devices import usable_device
from gan.utils.errors import UserError
from gan.utils.files import cache_root, expand_home
from gan.utils.settings import set_value

log = logging.getLogger(__name__)

Weights = Literal["ema", "raw"]
WEIGHT_FILES: dict[str, str] = {"ema": "ema", "raw": "generator"}
# What is read of an export, and all that is downloaded of a repository.
_FILES = [MANIFEST, SEAL, "config.yaml", *(f"{name}.safetensors" for name in WEIGHT_FILES.values())]


@dataclass(frozen=True, repr=False)
class TrainedGenerator:
    """A generator in evaluation mode, and where it came from."""

    network: nn.Module
    config: GanConfig
    step: int  # G updates it was trained for
    weights: Weights  # ema: averaged over training; raw: as trained
    folder: Path  # the checkpoint

    def sample(self, count: int, seed: int = 0, start: int = 0) -> Tensor:
        """Return the samples ``start`` to ``start + count`` of ``seed``: (count, C, S, S) uint8 on the CPU.

        A sample is a function of (seed, index) alone, whatever the range of the call.

        Raises UserError for a count that is no whole number from 1 up, and a seed or start that is none from 0 up.
        """
        for name, value, least in (("count", count, 1), ("seed", seed, 0), ("start", start, 0)):
            if not isinstance(value, Integral) or not least <= value < 2**63:
                raise UserError(f"{name}={value!r}: expected a whole number from {least} up.")
        pieces = sampling.generate(self.network, seed=seed, start=start, count=count, latent_dim=self.config.model.latent_dim)
        return torch.cat(list(pieces))

    def render(self, z: Tensor) -> Tensor:
        """Return the images of the latents ``z`` (N, latent_dim): (N, C, S, S) uint8 on the CPU.

        Raises UserError for latents of another shape.
        """
        if z.dim() != 2 or z.shape[1] != self.config.model.latent_dim or not len(z):
            raise UserError(f"z of shape {tuple(z.shape)}: expected (N, {self.config.model.latent_dim}).")
        return sampling.render(self.network, z)

    def __repr__(self) -> str:
        data, device = self.config.data, next(self.network.parameters()).device
        images = f"{data.channels}x{data.image_size}x{data.image_size}"
        return f"TrainedGenerator({str(self.folder)!r}, step {self.step}, {self.weights}, {images}, {device})"


def load_generator(
    path: str | Path,
    weights: Weights | None = None,
    device: str | torch.device = "cpu",
    checkpoint: str | int = "newest",
) -> TrainedGenerator:
    """Load the generator of a run, of one of its checkpoints, of an export, or of hf://OWNER/NAME, and log which it is.

    An address on the Hugging Face Hub may end in @REVISION, a branch, tag or commit. Only safetensors and the configuration are
    downloaded, into the hub's cache, which is also used where there is no network.

    ``weights`` is ``ema`` (the average over training) or ``raw``; None takes the average where there is one. ``checkpoint`` of
    a run is ``newest`` (that is whole), ``best`` (by the scores made while training) or the number of a step.

    Raises UserError when there is no usable generator, and for a device that this machine does not have.
    """
    usable, path = usable_device(device), Path(expand_home(str(path)))
    folder = hub.download(path, _FILES) if hub.is_address(path) else path
    generator = _find(folder, weights, usable, str(checkpoint))
    if generator.folder != path:  # it was chosen here
        score = _score(path, generator.step) if checkpoint == "best" else ""
        log.info(f"{generator.folder}: step {generator.step:,}, {generator.weights} weights{score}")
    return generator


def scores_folder(generator: TrainedGenerator) -> Path:
    """Return the folder for a generator's scores.jsonl: that of its run, or its own where it is an export.

    That of a download is in our cache: it may not be there yet. Raises UserError where there is no cache.
    """
    parent = generator.folder.parent
    if hub.is_cached(generator.folder):
        if (root := cache_root()) is None:
            raise UserError(f"{generator.folder}: no folder to keep its scores in. Set MSNGAN_CACHE.")
        return root / "hub" / parent.parent.name / generator.folder.name
    return run_of(generator) or generator.folder


def run_of(generator: TrainedGenerator) -> Path | None:
    """Return the folder of the run that keeps ``generator``; None for an export."""
    parent = generator.folder.parent
    if parent.name in ("checkpoints", checkpoints.MILESTONES) and (parent.parent / "config.yaml").exists():
        return parent.parent
    return parent if generator.folder.name == "best" and (parent / "config.yaml").exists() else None


def _score(run: Path, step: int) -> str:
    """Return ", " and the score that training gave to ``step``; "" where there is none."""
    own = [record for record in scores.read(run) if record["source"] == "training" and record["step"] == step]
    return f", distance {scores.distance_of(own[-1]):.2f} under {own[-1]['protocol']}" if own else ""


def _find(path: Path, weights: Weights | None, device: torch.device, checkpoint: str) -> TrainedGenerator:
    if weights not in (None, *WEIGHT_FILES):
        raise UserError(f"weights={weights!r}: expected 'ema' or 'raw'.")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. Expected a run such as runs/digits_msngan, a checkpoint or an export.")
    if (path / MANIFEST).exists():
        if checkpoint != "newest":
            raise UserError(f"checkpoint={checkpoint}: {path} is one checkpoint. Give the folder of its run.")
        return _load(path, weights, device)
    if checkpoint != "newest":
        return _load(_chosen(path, checkpoint), weights, device)
    generator = checkpoints.newest_usable(path / "checkpoints", lambda folder: _load(folder, weights, device), log.info)
    if generator is None:
        expected = "runs/NAME or one of runs/NAME/checkpoints/step-*"
        raise UserError(f"{path}: neither a checkpoint nor a run that holds one yet. Expected {expected}.")
    return generator


def _chosen(run: Path, checkpoint: str) -> Path:
    """Return the folder of the checkpoint ``best`` or of a step. Raises UserError where ``run`` does not have it."""
    found = [folder for place in (checkpoints.MILESTONES, "checkpoints") for folder in checkpoints.steps(run / place)]
    kept = {step_in_name(folder): folder for folder in found}  # a checkpoint before a milestone, which has one kind of weights
    steps = ", ".join(map(str, sorted(kept)))
    if checkpoint == "best":
        if (run / "best").is_dir():
            return run / "best"
        raise UserError(f"{run}: has no best checkpoint, which training keeps with evaluation.every. Kept: {steps}.")
    if not checkpoint.isdecimal() or len(checkpoint) > 18 or int(checkpoint) not in kept:
        raise UserError(f"checkpoint={checkpoint}: expected best, newest or a step that {run} keeps ({steps}).")
    return kept[int(checkpoint)]


def _load(folder: Path, weights: Weights | None, device: torch.device) -> TrainedGenerator:
    """Load the generator of one checkpoint or export."""
    return read_consistently(folder, lambda: _read(folder, weights, device))


def _read(folder: Path, weights: Weights | None, device: torch.device) -> TrainedGenerator:
    available = checkpoints.networks(folder)
    if not set(available) & set(WEIGHT_FILES.values()):
        raise UserError(f"{folder}: holds no generator ({', '.join(available)}). Give the run of a GAN.")
    chosen: Weights = weights or ("ema" if "ema" in available else "raw")
    if WEIGHT_FILES[chosen] not in available:
        raise UserError(f"{folder}: holds no {chosen} weights. Choose the other ones, or leave the choice out.")
    saved = checkpoints.load_weights(folder, WEIGHT_FILES[chosen])
    read_verified(folder, only="config.yaml")
    config = load_config(folder / "config.yaml")
    try:
        _require_as_many(config, saved)
        network = build_generator(config)
        network.load_state_dict(saved)
    except RuntimeError:
        raise UserError(f"{folder}: its weights do not fit its config.yaml. Restore the folder from a copy.") from None
    network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return TrainedGenerator(network, config, checkpoints.step_of(folder), chosen, folder)


def _require_as_many(config: GanConfig, saved: checkpoints.StateDict) -> None:
    """Raise RuntimeError where ``config`` describes more weights than were ``saved``, before memory is allocated for them."""
    if config.data.channels is None:
        raise RuntimeError("a run resolves data.channels when it starts")
    with torch.device("meta"):  # allocates no memory; the norms, which would compute on it, only add weights
        plain = replace(config.model.generator, norm="none", layer_norms=None, gain=False)
        bare = build_generator(set_value(config, "model.generator", plain))
    if sum(p.numel() for p in bare.parameters()) > sum(weight.numel() for weight in saved.values()):
        raise RuntimeError("more weights than were saved")
