"""A run's folder: whether it can be resumed with given settings and images, and its start."""

import json
import logging
import os
import shlex
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gan.data.datasets import ImageDataset
from gan.runs import checkpoints, initial_weights, scores
from gan.runs.checkpoints import Checkpoint
from gan.runs.environment import change_of_images, environment
from gan.runs.lock import sign, writing_to
from gan.runs.manifest import MANIFEST
from gan.runs.metrics import METRICS, PROBES, truncate_metrics
from gan.utils.command_lines import command_line
from gan.utils.errors import UserError
from gan.utils.files import remove_unfinished, write_atomically
from gan.utils.safe_reading import MAX_JSON, parse_json, read_file, read_records, refuse_links
from gan.utils.settings import C, RunConfig, differences, keep_resolved, load, set_value, to_yaml

log = logging.getLogger(__name__)

DIVERGED = "diverged.json"  # the numbers of a run that was stopped because they were not finite


def resolve(config: C, channels: int, device: torch.device) -> C:
    """Return ``config`` with the settings that depend on the images, the machine and other settings filled in."""
    config = set_value(config.resolve(), "data.channels", channels)
    if config.training.precision == "auto":
        config = set_value(config, "training.precision", "bf16" if computes_in_bf16(device) else "fp32")
    return config


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies in bf16, rather than converting to float32 and back."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def same_settings(config: C) -> C:
    """Return ``config`` with its open settings as the run in its folder has them, if there is one. Reads no image.

    Raises UserError when the folder holds something else, or a run with other settings.
    """
    saved = saved_config(type(config), config.folder)
    if saved is None or not _has_steps(config.folder):
        return config
    config = keep_resolved(config, saved)
    if changed := differences(config, saved):
        words = ["--config", str(config.folder / "config.yaml")]
        if saved.folder.resolve() != config.folder.resolve():  # it was moved or copied
            words += [f"run.dir={config.run.dir}", f"run.name={config.run.name}"]
        raise UserError(
            f"{config.folder} holds a run with other settings ({'; '.join(changed)})."
            f" Set run.name to start another run, or resume this one with its own settings: {shlex.join(words)}."
        )
    return config


def _has_steps(folder: Path) -> bool:
    """Return whether the run in ``folder`` has recorded a step. One that has not may be started with other settings."""
    try:
        return bool(checkpoints.steps(folder / "checkpoints")) or any(r["step"] > 0 for r in read_records(folder / METRICS))
    except (OSError, ValueError):
        return True


def open_run(config: C, images: ImageDataset, device: torch.device) -> tuple[C, Checkpoint | None]:
    """Return the resolved configuration, and the newest checkpoint of the run in its folder. Changes nothing.

    Raises UserError as ``same_settings`` does, and when the run was trained on other images.
    """
    config = resolve(same_settings(config), images.channels, device)
    checkpoint = checkpoints.newest(config.folder / "checkpoints", log.info)
    if checkpoint is not None and not config.data.accept_changes:
        starts = read_starts(config.folder)
        accepted = [start for start in starts if "accepted_changes" in start]  # maybe since the checkpoint was saved
        known = accepted[-1].get("data") if accepted else checkpoint.data
        if change := change_of_images(images, str(known), starts[-1] if starts else {}):
            raise UserError(
                f"{config.folder}: its images are not those that it was trained on ({change}). Restore them at data.path, set"
                " run.name to start another run, or go on with these by data.accept_changes=true."
            )
    return set_value(config, "data.accept_changes", value=False), checkpoint  # it holds for this start


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of environment.json, the oldest first. Raises UserError for a damaged file."""
    record = folder / "environment.json"
    try:
        starts = list(parse_json(read_file(record, MAX_JSON))["starts"]) if record.exists() else []
        if all(isinstance(start, dict) for start in starts):
            return starts
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{record}: damaged. Restore it from a copy, or remove it to resume without it.")


def recorded_images(run: Path) -> str:
    """Return the fingerprint of the images that ``run`` was last started with, from environment.json; "" where that is missing.

    Raises UserError for a damaged file.
    """
    starts = read_starts(run)
    return str(starts[-1].get("data", "")) if starts else ""


def require_trained_on(images: ImageDataset, run: Path) -> None:
    """Raise UserError where ``images`` are not those that ``run`` was last started with, as far as environment.json tells."""
    starts = read_starts(run)
    if starts and "data" in starts[-1] and (change := change_of_images(images, starts[-1]["data"], starts[-1])):
        raise UserError(
            f"{run}: its training images have changed ({change}). Put those back that it was trained on, or name the images to"
            " compare with by --reference."
        )


def is_run(folder: Path) -> bool:
    """Return whether a run has been started in ``folder``."""
    return (folder / "config.yaml").is_file()


def require_unused(folder: Path) -> None:
    """Raise UserError where a run has been started in ``folder``, which another process did while this one read its images."""
    if is_run(folder):
        raise UserError(f"{folder}: another process has started a run in it meanwhile. The same command resumes that run.")


def refuse_run(folder: Path) -> None:
    """Raise UserError where the pictures in ``folder``, the place of a set of images, are a run's grids of samples."""
    if not os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises OSError for a name that is too long)
        return
    inside = (found.parent for found in folder.glob("*/environment.json"))
    whole = folder.resolve()  # of "." or a link
    around = [whole.parent] if whole.name == "samples" else []
    for run in (folder, *around, *inside):
        if (run / MANIFEST).exists() or ((run / "environment.json").exists() and is_run(run)):
            score = command_line("eval", "score", run, "--protocol", "quick")
            sample = command_line("gan", "sample", run, "--single", "--count", 1000, "--out", "images.zip")
            raise UserError(
                f"{folder}: no set of images, but {'a run' if run == folder else f'of the run {run}'}: its pictures are grids of"
                f" samples. Score the run's generator by: {score} or make single images by: {sample}"
            )


def saved_config(kind: type[C], folder: Path) -> C | None:
    """Return the settings of the run of this ``kind`` in ``folder``; None where there is no run yet.

    Raises UserError for another kind of folder.
    """
    try:
        if is_run(folder):
            refuse_links(folder, folder / "checkpoints")
            return load(kind, folder / "config.yaml")
        foreign = folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir()))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}). Set run.dir to a folder that can.") from None
    if foreign:
        raise UserError(f"{folder} exists and is not a run (no config.yaml in it). Set another run.name or run.dir.")
    return None


def start_folder(
    config: RunConfig,
    images: ImageDataset,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None,
    origin: dict[str, Any] | None,
) -> None:
    """Sign the lock, write config.yaml, add this start to environment.json, and remove what the resumed run will write again.

    Written again is every record after the ``checkpoint`` (None: every record), and those of its evaluation where that had not
    ended. ``origin`` is what a new run begins with of another one, None for nothing.
    """
    folder, step = config.folder, checkpoint.step if checkpoint else 0
    evaluated = checkpoint is not None and checkpoint.evaluated
    record = folder / "environment.json"
    starts = read_starts(folder)
    starts.append(environment(config, images, accelerator, step, starts[-1] if starts else {}))
    with writing_to(folder):
        sign(folder)
        remove_unfinished(folder)
        remove_unfinished(folder / "samples")
        (folder / DIVERGED).unlink(missing_ok=True)
        checkpoints.complete_replacement(folder / "best")
        scores.forget_training_after(folder, step if evaluated else step - 1)
        truncate_metrics(folder / METRICS, step, evaluated=evaluated)
        truncate_metrics(folder / PROBES, step)
        if checkpoint is None:
            (folder / initial_weights.FILE).unlink(missing_ok=True)
        write_atomically(folder / "config.yaml", to_yaml(config).encode())  # first: it makes the folder a run, which can resume
        if origin is not None:
            write_atomically(folder / initial_weights.FILE, (json.dumps(origin, indent=1) + "\n").encode())
        write_atomically(record, (json.dumps({"starts": starts}, indent=1) + "\n").encode())
