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


def environment(config: RunConfig, images: ImageDataset, accelerator: Accelerator, step: int) -> dict[str, Any]:
    """Return versions, device, processes, git commit and data fingerprint, as an entry of environment.json."""
    device = accelerator.device
    project = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
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
        "command": sys.argv,
    }
