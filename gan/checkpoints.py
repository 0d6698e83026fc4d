"""Checkpoints that are whole or not there at all: atomic save, verified load, prune."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from gan.errors import UserError
from gan.files import sync_folder, write_synced

FORMAT = 1
MANIFEST = "checkpoint.json"
StateDict = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder holds."""

    step: int
    weights: dict[str, StateDict]  # by network
    optimizers: dict[str, Any]  # state_dict by player
    config: str  # the run's configuration as YAML
    data: str  # fingerprint of the images


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies. Names sort by step."""
    return root / f"step-{step:08d}"


def save(root: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes a checkpoint below ``root`` and drops all but the ``keep`` newest. Returns its folder.

    Everything is written and synced under another name first. The rename that follows is the one moment from which the
    checkpoint exists, so a kill at any time leaves the old ones and, then or not, the whole new one.
    """
    root.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(root)
    buffer = BytesIO()
    torch.save(checkpoint.optimizers, buffer)
    files = {**_weight_files(checkpoint.weights), "optimizers.pt": buffer.getvalue(), "config.yaml": checkpoint.config.encode()}
    unfinished = root / f"tmp-{checkpoint.step:08d}"
    _write_files(unfinished, checkpoint.step, checkpoint.data, files)
    target = folder_of(root, checkpoint.step)
    unfinished.rename(target)
    sync_folder(root)
    _prune(root, keep)
    return target


def tidy(root: Path, step: int, *, keep: int) -> None:
    """Brings ``root`` into order before a run goes on from its checkpoint of ``step``.

    Newer ones are damaged, or ``newest`` would have taken them: they are set aside under another name, so that they
    neither stand in the way nor count among the ``keep`` newest. Then finishes a removal that was interrupted.
    """
    for folder in steps(root):
        if folder.name > folder_of(root, step).name:
            aside = root / f"damaged-{folder.name}"
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
    _prune(root, keep)


def write_weights(folder: Path, step: int, weights: Mapping[str, Mapping[str, Tensor]], config: str) -> None:
    """Writes networks' weights alone, without what training needs to go on, into a new ``folder`` for ``load_weights``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _write_files(folder, step, "", {**_weight_files(weights), "config.yaml": config.encode()})


def replace_weights(folder: Path, step: int, weights: Mapping[str, Mapping[str, Tensor]], config: str) -> None:
    """``write_weights`` over what ``folder`` holds. A kill leaves the old content or the new, though perhaps under the
    name that ``mend_replaced`` puts right."""
    new, old = _beside(folder)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    write_weights(new, step, weights, config)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def mend_replaced(folder: Path) -> None:
    """Finishes or takes back a ``replace_weights`` that was interrupted."""
    new, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def checksum(name: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the file that a checkpoint holds, or would hold, of one network's ``weights``."""
    (content,) = _weight_files({name: weights}).values()
    return hashlib.sha256(content).hexdigest()


def _weight_files(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    return {
        f"{name}.safetensors": safetensors.torch.save({key: t.detach().cpu().contiguous() for key, t in state.items()})
        for name, state in weights.items()
    }


def _write_files(folder: Path, step: int, data: str, files: Mapping[str, bytes]) -> None:
    """Writes and syncs ``files`` and, last, the manifest with their checksums."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_synced(folder / name, content)
    sums = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    manifest = {"format": FORMAT, "step": step, "data": data, "files": sums}
    write_synced(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    sync_folder(folder)


def _prune(root: Path, keep: int) -> None:
    for old in steps(root)[:-keep]:
        # Renamed first, so that a kill half way through the removal leaves no folder that looks like a checkpoint.
        doomed = root / f"tmp-old-{old.name}"
        old.rename(doomed)
        shutil.rmtree(doomed)
    _remove_unfinished(root)


def _remove_unfinished(root: Path) -> None:
    for leftover in root.glob("tmp-*"):
        shutil.rmtree(leftover)


def steps(root: Path) -> list[Path]:
    """The checkpoints' folders below ``root``, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def load(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, each file's checksum verified. Raises UserError for one that is damaged or none."""
    contents = _verified(folder)
    manifest = json.loads(contents[MANIFEST])
    try:
        # weights_only: nothing but tensors and plain values is unpickled.
        optimizers = torch.load(BytesIO(contents["optimizers.pt"]), map_location="cpu", weights_only=True)
        weights = {
            name.removesuffix(".safetensors"): safetensors.torch.load(content)
            for name, content in contents.items()
            if name.endswith(".safetensors")
        }
    except (pickle.UnpicklingError, RuntimeError, safetensors.SafetensorError, KeyError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({str(error).splitlines()[0]}).") from None
    return Checkpoint(manifest["step"], weights, optimizers, contents["config.yaml"].decode(), manifest["data"])


def load_weights(folder: Path, name: str) -> StateDict:
    """One network's weights from the checkpoint in ``folder``, verified. Raises UserError as ``load`` does."""
    contents = _verified(folder, only=f"{name}.safetensors")
    return safetensors.torch.load(contents[f"{name}.safetensors"])


def step_of(folder: Path) -> int:
    """The step that the manifest in ``folder`` names; for a folder whose weights have been loaded."""
    return int(json.loads((folder / MANIFEST).read_bytes())["step"])


def networks(folder: Path) -> list[str]:
    """Names of the networks whose weights ``folder`` holds."""
    return sorted(path.name.removesuffix(".safetensors") for path in folder.glob("*.safetensors"))


def _verified(folder: Path, only: str | None = None) -> dict[str, bytes]:
    """The contents of the checkpoint's files (or ``only`` one of them), as listed and checked by its manifest."""

    def damaged(what: str) -> UserError:
        return UserError(f"checkpoint {folder}: {what}.")

    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = json.loads(text)
        listed = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        step, version = int(manifest["step"]), manifest["format"]
    except FileNotFoundError:
        raise damaged(f"no {MANIFEST} in it, so it is not a whole checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise damaged(f"{MANIFEST} is damaged") from None
    if version != FORMAT:
        raise damaged(f"has format {version}, this version reads {FORMAT}")
    if folder.name.startswith("step-") and folder.name != folder_of(folder.parent, step).name:
        raise damaged(f"holds step {step}")
    if only is not None and only not in listed:
        raise damaged(f"has no {only}")
    contents = {MANIFEST: text}
    for name in [only] if only else listed:
        size, checksum = listed[name]
        try:
            content = (folder / Path(name).name).read_bytes()
        except OSError as error:
            raise damaged(f"{name} cannot be read ({error.strerror})") from None
        if len(content) != size:
            raise damaged(f"{name} has {len(content)} bytes instead of {size}")
        if hashlib.sha256(content).hexdigest() != checksum:
            raise damaged(f"{name} has been changed or damaged (its checksum differs)")
        contents[name] = content
    return contents


def first_usable(root: Path, read: Callable[[Path], T]) -> tuple[T | None, list[str]]:
    """What ``read`` makes of the newest checkpoint below ``root`` that it accepts, and what it says of those passed over."""
    passed_over: list[str] = []
    for folder in reversed(steps(root)):
        try:
            return read(folder), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def newest(root: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint below ``root``; None where there never was one. Says which damaged ones it passed over.

    Raises UserError when there are checkpoints and all are damaged.
    """
    checkpoint, damaged = first_usable(root, load)
    if checkpoint is not None:
        for message in damaged:
            report(f"{message} Going on from step {checkpoint.step} instead.")
        return checkpoint
    if damaged:
        reasons = " ".join(damaged)
        raise UserError(f"no whole checkpoint left. {reasons} Set another run.name to start anew, or restore one from a copy.")
    return None
