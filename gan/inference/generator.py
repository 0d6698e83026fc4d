"""Load a trained generator from a run, a checkpoint or an export, and sample from it."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gan.config import GanConfig, load_config
from gan.inference import sampling
from gan.models.build import build_generator
from gan.runs import checkpoints
from gan.utils.errors import UserError
from gan.utils.settings import set_value

log = logging.getLogger(__name__)

Weights = Literal["ema", "raw"]
WEIGHT_FILES: dict[str, str] = {"ema": "ema", "raw": "generator"}


@dataclass(frozen=True)
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

        Raises UserError for a count below 1 or a start below 0.
        """
        if count < 1 or start < 0:
            raise UserError(f"count={count}, start={start}: expected a count of at least 1 from a start of at least 0.")
        pieces = sampling.generate(self.network, seed=seed, start=start, count=count, latent_dim=self.config.model.latent_dim)
        return torch.cat(list(pieces))


def load_generator(path: str | Path, weights: Weights | None = None, device: str | torch.device = "cpu") -> TrainedGenerator:
    """Load the generator of a run (from its newest whole checkpoint), of one of its checkpoints, or of an export.

    ``weights`` is ``ema`` (the average over training) or ``raw``; None takes the average where there is one.

    Raises UserError when there is no usable generator.
    """
    path = Path(path)
    if weights not in (None, *WEIGHT_FILES):
        raise UserError(f"weights={weights!r}: expected 'ema' or 'raw'.")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. Expected a run such as runs/digits_msngan, a checkpoint or an export.")
    if (path / checkpoints.MANIFEST).exists():
        return _load(path, weights, device)
    generator = checkpoints.newest_usable(path / "checkpoints", lambda folder: _load(folder, weights, device), log.info)
    if generator is None:
        expected = "runs/NAME or one of runs/NAME/checkpoints/step-*"
        raise UserError(f"{path}: neither a checkpoint nor a run that holds one yet. Expected {expected}.")
    return generator


def _load(folder: Path, weights: Weights | None, device: str | torch.device) -> TrainedGenerator:
    """Load the generator of one checkpoint or export."""
    available = checkpoints.networks(folder)
    chosen: Weights = weights or ("ema" if "ema" in available else "raw")
    if WEIGHT_FILES[chosen] not in available:
        raise UserError(f"{folder}: holds no {chosen} weights. Choose the other ones, or leave the choice out.")
    saved = checkpoints.load_weights(folder, WEIGHT_FILES[chosen])
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
