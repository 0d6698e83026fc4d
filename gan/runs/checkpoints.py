"""Checkpoints that are whole or not there at all: atomic save, verified load, prune."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from gan.utils.errors import UserError, first_line
from gan.utils.files import sync_folder, write_synced
from gan.utils.safe_reading import MAX_JSON, parse_json, read_file
from gan.utils.tensor_files import load_tensors

FORMAT = 2
MANIFEST = "checkpoint.json"
SEAL = "checkpoint.sha256"  # of the manifest, as sha256sum writes it: the manifest has the other files' checksums
StateDict = dict[str, Tensor]
_UNSEEN = "look-pending"  # an empty file: the one of a checkpoint that may be gone later
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder holds."""

    step: int
    weights: dict[str, StateDict]  # by network
    optimizers: dict[str, Any]  # state_dict by player
    config: str  # the run's configuration as YAML
    data: str  # fingerprint of the images
    looked: bool = True  # whether pictures and scores of this step are done; not where the run was stopped meanwhile


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
    try:
        _write_files(unfinished, checkpoint.step, checkpoint.data, files)
        if not checkpoint.looked:
            write_synced(unfinished / _UNSEEN)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)  # where the disk is full, it would keep it so
        raise
    target = folder_of(root, checkpoint.step)
    unfinished.rename(target)
    sync_folder(root)
    _prune(root, keep)
    return target


def note_looked(root: Path, step: int) -> None:
    """Pictures and scores of the checkpoint of ``step`` are done, if they were not."""
    (folder_of(root, step) / _UNSEEN).unlink(missing_ok=True)


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
    """Writes and syncs ``files`` and, last, the manifest with their checksums and its own."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_synced(folder / name, content)
    sums = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    manifest = {"format": FORMAT, "step": step, "data": data, "files": sums}
    text = (json.dumps(manifest, indent=1) + "\n").encode()
    write_synced(folder / MANIFEST, text)
    write_synced(folder / SEAL, _seal(text))
    sync_folder(folder)


def _seal(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


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
    """The checkpoints' folders below ``root``, oldest first. Raises UserError where ``root`` is no folder."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: not a folder, as that of checkpoints must be. Restore it from a copy, or remove it.")
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def load(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, each file's checksum verified. Raises UserError for one that is damaged or none."""
    contents = _verified(folder)
    manifest = json.loads(contents[MANIFEST])
    weights = {
        name.removesuffix(".safetensors"): _tensors(folder, name, content)
        for name, content in contents.items()
        if name.endswith(".safetensors")
    }
    try:
        optimizers = load_tensors(contents["optimizers.pt"])
        config, data = contents["config.yaml"].decode(), str(manifest["data"])
    except (ValueError, KeyError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({first_line(error)}).") from None
    return Checkpoint(manifest["step"], weights, optimizers, config, data, not (folder / _UNSEEN).exists())


def _tensors(folder: Path, name: str, content: bytes) -> StateDict:
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # noqa: BLE001 (a header can claim any dtype and shape)
        raise UserError(f"checkpoint {folder}: {name} cannot be read ({first_line(error)}).") from None


def load_weights(folder: Path, name: str) -> StateDict:
    """One network's weights from the checkpoint in ``folder``, verified. Raises UserError as ``load`` does."""
    contents = _verified(folder, only=f"{name}.safetensors")
    return _tensors(folder, f"{name}.safetensors", contents[f"{name}.safetensors"])


def step_of(folder: Path) -> int:
    """The step that the manifest in ``folder`` names; for a folder whose weights have been loaded."""
    return int(json.loads((folder / MANIFEST).read_bytes())["step"])


def networks(folder: Path) -> list[str]:
    """Names of the networks whose weights ``folder`` holds, as its manifest lists them. Raises UserError as ``load`` does."""
    _, listed = _manifest(folder)
    return sorted(name.removesuffix(".safetensors") for name in listed if name.endswith(".safetensors"))


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"checkpoint {folder}: {what}.")


def _manifest(folder: Path) -> tuple[bytes, dict[str, tuple[int, str]]]:
    """The manifest of a checkpoint, and the size and checksum of each file that it lists. Raises UserError for a damaged one."""
    try:
        text = read_file(folder / MANIFEST, MAX_JSON)
        manifest = parse_json(text)
        listed = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        step, version = int(manifest["step"]), manifest["format"]
        sealed = (folder / SEAL).exists()
        intact = not sealed or read_file(folder / SEAL, MAX_JSON) == _seal(text)
    except FileNotFoundError:
        raise _damaged(folder, f"no {MANIFEST} in it, so it is not a whole checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise _damaged(folder, f"{MANIFEST} is damaged") from None
    if not intact:
        raise _damaged(folder, f"{MANIFEST} has been changed or damaged (its checksum differs)")
    if version not in (1, FORMAT):  # 1 had no seal
        raise _damaged(folder, f"has format {version}, this version reads {FORMAT}")
    if not sealed and version != 1:
        raise _damaged(folder, f"no {SEAL} in it, so it is not a whole checkpoint")
    if folder.name.startswith("step-") and folder.name != folder_of(folder.parent, step).name:
        raise _damaged(folder, f"holds step {step}")
    return text, listed


def _verified(folder: Path, only: str | None = None) -> dict[str, bytes]:
    """The contents of the checkpoint's files (or ``only`` one of them), as listed and checked by its manifest."""
    text, listed = _manifest(folder)
    if only is not None and only not in listed:
        raise _damaged(folder, f"has no {only}")
    contents = {MANIFEST: text}
    for name in [only] if only else listed:
        size, checksum = listed[name]
        try:
            content = read_file(folder / Path(name).name, size)
        except OSError as error:
            raise _damaged(folder, f"{name} cannot be read ({error.strerror})") from None
        if len(content) != size:
            raise _damaged(folder, f"{name} has {len(content)} bytes instead of {size}")
        if hashlib.sha256(content).hexdigest() != checksum:
            raise _damaged(folder, f"{name} has been changed or damaged (its checksum differs)")
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
