"""What a run's numbers may depend on besides its configuration."""

import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gan.data.datasets import ImageDataset
from gan.utils.settings import RunConfig

PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "omegaconf", "pillow", "safetensors")


def environment(
    config: RunConfig, images: ImageDataset, accelerator: Accelerator, step: int, before: dict[str, Any]
) -> dict[str, Any]:
    """Return versions, device, processes, git commit and data fingerprint, as an entry of environment.json.

    ``before`` is the last start's entry; empty where there is none.
    """
    device = accelerator.device
    project = Path(__file__).resolve().parents[2]
    # Installed, the package may lie in a repository of somebody else.
    git = shutil.which("git") if (project / ".git").exists() else None
    commit = git and subprocess.run(
        [git, "-C", str(project), "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=False
    )
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "git_commit": commit.stdout.strip() or None if commit else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": config.training.precision,
        "data": images.fingerprint,
        **data_state(images, before, step),
        "command": sys.argv,
    }


def data_state(images: ImageDataset, before: dict[str, Any], step: int) -> dict[str, Any]:
    """Return what of the images is compared at the next start besides the fingerprint, and which changes were accepted.

    Files whose times are those of the start ``before`` are not read again.
    """
    times = images.file_times()
    same = bool(times) and times == before.get("data_times") and images.fingerprint == before.get("data")
    state = {"data_times": times, "data_sample": before.get("data_sample") if same else images.sampled_content()} if times else {}
    if step and change_of_images(images, before.get("data", images.fingerprint), before):
        state["accepted_changes"] = {key: before.get(key) for key in ("data", "data_times", "data_sample")}
    return state


def change_of_images(images: ImageDataset, fingerprint: str, before: dict[str, Any]) -> str:
    """Return how ``images`` differ from those of ``fingerprint`` and the start ``before``; "" where they do not.

    The content of files is compared only where their times differ: a copy has other times and equal content.
    """
    if images.fingerprint != fingerprint:
        return f"now {images.fingerprint}, then {fingerprint}"
    times, sample = before.get("data_times"), before.get("data_sample")
    if times and sample and times != images.file_times() and sample != images.sampled_content():
        return "files of the same names and sizes, but other contents"
    return ""
