"""The weights that a new run starts from: those of another run, a checkpoint or an export, as far as they fit."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan.runs import checkpoints
from gan.runs.checkpoints import StateDict
from gan.runs.manifest import MANIFEST, read_consistently
from gan.utils.errors import UserError

log = logging.getLogger(__name__)
FILE = "initial.json"  # in the run's folder: what it started from
_SETTING = "training.initial"
_NAMED = 3  # weights left out that a message names; the file names all
# Whose weights a network takes: the first of these that the other run has. An export holds one generator only, and a run
# without an average takes its last weights for it.
_SOURCES = {"generator": ("generator", "ema"), "discriminator": ("discriminator",), "ema": ("ema", "generator")}


@dataclass(frozen=True)
class InitialWeights:
    """The networks of one checkpoint or export."""

    folder: Path
    step: int
    weights: dict[str, StateDict]  # by network


def read_initial(path: str) -> InitialWeights:
    """Read the networks of a GAN's run (its newest whole checkpoint), of a checkpoint or of an export.

    Raises UserError where there are none, or they are damaged.
    """
    given = Path(path)
    try:
        if (given / MANIFEST).exists():
            found: InitialWeights | None = _read(given)
        else:
            found = checkpoints.newest_usable(given / "checkpoints", _read, log.info)
    except UserError as error:
        raise UserError(f"{_SETTING}={path}: {error}") from None
    if found is None:
        raise UserError(f"{_SETTING}={path}: neither a run that has saved a checkpoint, nor a checkpoint or an export.")
    return found


def _read(folder: Path) -> InitialWeights:
    return read_consistently(folder, lambda: _networks(folder))


def _networks(folder: Path) -> InitialWeights:
    names = [name for name in checkpoints.networks(folder) if name in _SOURCES]
    if not names:
        raise UserError(f"{folder} holds no network of a GAN.")
    return InitialWeights(folder, checkpoints.step_of(folder), {name: checkpoints.load_weights(folder, name) for name in names})


def _fitting(network: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors of ``network`` that are to be taken from ``saved``.

    These are the parameters of equal name and shape; singular vectors, in layers whose weight is taken; and statistics, in
    layers whose parameters all are, but for a gain, which starts at 1. Those of other weights would be wrong: with such
    vectors, sigma would be too small.
    """
    own = network.state_dict()
    same = [key for key, value in own.items() if key in saved and saved[key].shape == value.shape]
    parameters = {key for key, _ in network.named_parameters()}
    left = parameters.difference(same)
    weights = {_layer(key) for key in left if key.endswith(".layer.weight")}
    changed = {_layer(key) for key in left if not key.endswith(".gain")}
    changed |= {_layer(key) for key in saved if key.endswith(".gain") and key not in own}  # its means are those times the gain
    vectors = (".u", ".v")
    return [key for key in same if key in parameters or _layer(key) not in (weights if key.endswith(vectors) else changed)]


def _means_as_biases(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``saved`` with the biases of SN layers for which it has MSN layers.

    In evaluation mode MSN adds m - E[h] to each channel, so it is SN with that bias. A layer with a gain is no SN layer.
    """
    found = dict(saved)
    for key in saved:
        layer, _, name = key.rpartition(".")
        bias = f"{layer}.layer.bias"
        is_msn = name == "m" and f"{layer}.running_mean" in saved and f"{layer}.gain" not in saved
        if is_msn and key not in own and bias in own:
            found[bias] = saved[key] - saved[f"{layer}.running_mean"]
    return found


def _layer(key: str) -> str:
    """Return the layer of a network that the tensor ``key`` is in: "layers.3" of "layers.3.layer.weight"."""
    return ".".join(key.split(".")[:2])


def load_fitting(networks: Mapping[str, nn.Module], initial: InitialWeights) -> dict[str, Any]:
    """Copy into ``networks``, by name, the weights and buffers of ``initial`` that fit.

    Return what was loaded, with the checksums of its files, and what was left as it was. Raises UserError where nothing fits.
    """
    record: dict[str, Any] = {"folder": str(initial.folder), "step": initial.step, "networks": {}}
    for name, network in networks.items():
        source = next((other for other in _SOURCES[name] if other in initial.weights), None)
        saved = initial.weights[source] if source else {}
        own = network.state_dict()
        given = _means_as_biases(own, saved)
        fitting = _fitting(network, given)
        with torch.no_grad():
            for key in fitting:
                own[key].copy_(given[key])
        checksum = checkpoints.checksum(source, saved) if source else None
        left = [key for key in own if key not in fitting]
        record["networks"][name] = {"from": source, "sha256": checksum, "loaded": fitting, "left": left}
    if not any(entry["loaded"] for entry in record["networks"].values()):
        raise UserError(
            f"{_SETTING}={initial.folder}: no weight has a name and shape of this run's networks. Choose a run with the same"
            " model.*.channels and norms, or leave the setting out."
        )
    return record


def describe(record: dict[str, Any]) -> str:
    """Return in one line what ``load_fitting`` loaded and left."""
    parts = []
    for name, entry in record["networks"].items():
        total, left = len(entry["loaded"]) + len(entry["left"]), entry["left"]
        text = f"{name}: {len(entry['loaded'])} of {total} tensors"
        if entry["from"] not in (None, name):
            text += f" of its {entry['from']}"
        if left:
            text += f" (left: {', '.join(left[:_NAMED])}{', ...' if len(left) > _NAMED else ''})"
        parts.append(text)
    return f"starts with the weights of {record['folder']}, step {record['step']:,}; " + "; ".join(parts)
