"""Checkpoints that are whole or not there at all: atomic save, verified load, prune."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from gan.runs.manifest import (
    FORMAT,
    MANIFEST,
    SEAL,
    UnreadableError,
    damaged,
    folder_of,
    read_manifest,
    read_verified,
    seal,
    step_in_name,
)
from gan.utils.errors import UserError, first_line
from gan.utils.files import sync_folder, write_synced
from gan.utils.tensor_files import load_tensors

MILESTONES = "milestones"  # folder of a run for the generators that are kept for ever
StateDict = dict[str, Tensor]
_UNEVALUATED = "look-pending"  # an empty file where ``Checkpoint.evaluated`` is false; the only one that may disappear later
_NAME = re.compile(r"step-[0-9]+")  # of a checkpoint's folder
_UNFINISHED = re.compile(r"tmp-([0-9]+|old-step-[0-9]+)")  # of one that is being written or removed
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint's folder."""

    step: int
    weights: dict[str, StateDict]  # by network
    optimizers: dict[str, Any]  # state_dict by network
    config: str  # the run's configuration as YAML
    data: str  # fingerprint of the images
    evaluated: bool = True  # False where the run was stopped before this step's samples and scores were complete


def save(root: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint below ``root``, remove all but the ``keep`` newest, and return its folder.

    All files are written and synced in a folder of another name, which is then renamed. A kill at any time therefore leaves
    the old checkpoints and either the whole new one or none of it.
    """
    root.mkdir(exist_ok=True)  # not the run's folder, which someone may have moved
    _remove_unfinished(root)
    buffer = BytesIO()
    torch.save(checkpoint.optimizers, buffer)
    files = {**_weight_files(checkpoint.weights), "optimizers.pt": buffer.getvalue(), "config.yaml": checkpoint.config.encode()}
    unfinished = root / f"tmp-{checkpoint.step:08d}"
    try:
        _write_files(unfinished, checkpoint.step, checkpoint.data, files)
        if not checkpoint.evaluated:
            write_synced(unfinished / _UNEVALUATED)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)  # it would keep a full disk full
        raise
    target = folder_of(root, checkpoint.step)
    unfinished.rename(target)
    sync_folder(root)
    _prune(root, keep)
    return target


def mark_evaluated(root: Path, step: int) -> None:
    """Note that samples and scores of the checkpoint of ``step``, if there is one, are complete."""
    (folder_of(root, step) / _UNEVALUATED).unlink(missing_ok=True)


def tidy(root: Path, step: int, *, keep: int) -> None:
    """Prepare ``root`` for a run that resumes from its checkpoint of ``step``.

    Newer checkpoints are damaged, since ``newest`` did not return them. They are renamed to damaged-*, so that they neither
    collide with new ones nor count among the ``keep`` newest. An interrupted removal of old checkpoints is completed.
    """
    for folder in steps(root):
        if step_in_name(folder) > step:
            aside = root / f"damaged-{folder.name}"
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
    _prune(root, keep)


def write_weights(folder: Path, step: int, weights: Mapping[str, Mapping[str, Tensor]], config: str) -> None:
    """Write networks' weights without optimiser state into a new ``folder``, which ``load_weights`` reads."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _write_files(folder, step, "", {**_weight_files(weights), "config.yaml": config.encode()})


def replace_weights(folder: Path, step: int, weights: Mapping[str, Mapping[str, Tensor]], config: str) -> None:
    """Replace the content of ``folder`` by ``write_weights``.

    A kill leaves the old content or the new, though perhaps under a temporary name, which ``complete_replacement`` restores.
    """
    complete_replacement(folder)
    new, old = _beside(folder)
    write_weights(new, step, weights, config)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    complete_replacement(folder)


def complete_replacement(folder: Path) -> None:
    """Complete or undo a ``replace_weights`` that was interrupted."""
    new, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def checksum(name: str, weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the safetensors file that a checkpoint holds of one network's ``weights``."""
    (content,) = _weight_files({name: weights}).values()
    return hashlib.sha256(content).hexdigest()


def _weight_files(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    return {
        f"{name}.safetensors": safetensors.torch.save({key: t.detach().cpu().contiguous() for key, t in state.items()})
        for name, state in weights.items()
    }


def _write_files(folder: Path, step: int, data: str, files: Mapping[str, bytes]) -> None:
    """Write and sync ``files``, then the manifest with their checksums, then the manifest's own checksum."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_synced(folder / name, content)
    sums = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    manifest = {"format": FORMAT, "step": step, "data": data, "files": sums}
    text = (json.dumps(manifest, indent=1) + "\n").encode()
    write_synced(folder / MANIFEST, text)
    write_synced(folder / SEAL, seal(text))
    sync_folder(folder)


def _prune(root: Path, keep: int) -> None:
    for old in steps(root)[:-keep]:
        # Renamed first: a kill during the removal leaves no folder that has a checkpoint's name.
        doomed = root / f"tmp-old-{old.name}"
        old.rename(doomed)
        shutil.rmtree(doomed)
    _remove_unfinished(root)


def _remove_unfinished(root: Path) -> None:
    for leftover in root.glob("tmp-*"):
        if _UNFINISHED.fullmatch(leftover.name) and leftover.is_dir():
            shutil.rmtree(leftover)


def steps(root: Path) -> list[Path]:
    """Return the checkpoints' folders below ``root``, oldest first. Raises UserError where ``root`` is a file."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: a file, where the folder of checkpoints is expected. Restore it from a copy, or remove it.")
    return sorted((path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()), key=step_in_name)


def load(folder: Path) -> Checkpoint:
    """Load the checkpoint in ``folder`` and verify each file's checksum. Raises UserError where it is damaged or missing."""
    contents = read_verified(folder)
    manifest = json.loads(contents[MANIFEST])
    weights = {name: _tensors(folder, name, contents) for name in _networks(contents)}
    try:
        optimizers = load_tensors(contents["optimizers.pt"])
        config, data = contents["config.yaml"].decode(), str(manifest["data"])
    except (ValueError, KeyError) as error:
        raise damaged(folder, f"cannot be read ({first_line(error)})") from None
    return Checkpoint(manifest["step"], weights, optimizers, config, data, is_evaluated(folder))


def _networks(files: Iterable[str]) -> list[str]:
    return sorted(name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors"))


def _tensors(folder: Path, name: str, contents: Mapping[str, bytes]) -> StateDict:
    try:
        return safetensors.torch.load(contents[f"{name}.safetensors"])
    except Exception as error:  # noqa: BLE001 (a header can claim any dtype and shape)
        raise damaged(folder, f"{name} cannot be read ({first_line(error)})") from None


def load_weights(folder: Path, name: str) -> StateDict:
    """Load one network's weights from the checkpoint in ``folder``, verified. Raises UserError as ``load`` does."""
    return _tensors(folder, name, read_verified(folder, only=f"{name}.safetensors"))


def step_of(folder: Path) -> int:
    """Return the step in the manifest of ``folder``, whose weights have been loaded before."""
    return int(json.loads((folder / MANIFEST).read_bytes())["step"])


def is_evaluated(folder: Path) -> bool:
    """Return whether samples and scores of the checkpoint in ``folder`` are complete; see ``Checkpoint.evaluated``."""
    return not (folder / _UNEVALUATED).exists()


def networks(folder: Path) -> list[str]:
    """Return the names of the networks whose weights ``folder`` holds. Raises UserError as ``load`` does."""
    return _networks(read_manifest(folder)[1])


def newest_usable(root: Path, read: Callable[[Path], T], report: Callable[[str], None]) -> T | None:
    """Return ``read`` of the newest checkpoint below ``root`` for which it raises no UserError; None where there is none.

    The errors of newer ones go to ``report``. Raises UserError when there are checkpoints and all raise one, and as soon as one
    cannot be read at present: it may be sound.
    """
    mistakes: list[str] = []
    for folder in reversed(steps(root)):
        try:
            found = read(folder)
        except UnreadableError:
            raise
        except UserError as error:
            mistakes.append(str(error))
            continue
        for mistake in mistakes:
            report(f"{mistake} {folder.name} is used instead.")
        return found
    if mistakes:
        reasons = " ".join(mistakes)
        raise UserError(f"{root}: no usable checkpoint left. {reasons} Restore one from a copy, or set another run.name.")
    return None


def newest(root: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Load the newest whole checkpoint below ``root``; see ``newest_usable``."""
    return newest_usable(root, load, report)
