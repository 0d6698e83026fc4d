"""Refuse a batch that cannot fit into memory, by a lower bound of what its updates need."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from gan.config import GanConfig
from gan.inference.sampling import CHUNK
from gan.utils.errors import UserError
from gan.utils.settings import RunConfig

_BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}  # of one activation
# Outputs of all layers for one image, in multiples of channels * image_size^2, see gan/models/dcgan.py.
_DISCRIMINATOR, _GENERATOR = 1 + 1 / 4 + 2 / 4 + 2 / 16 + 4 / 16 + 4 / 64 + 8 / 64, 8 / 64 + 4 / 16 + 2 / 4 + 1
_CGROUPS = (  # limit, use and statistics of a container's memory, of version 2 and version 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def gan_bytes(config: GanConfig, local_size: int) -> float:
    """Return a lower bound of the bytes that one step needs for the ``local_size`` images of a process, without weights.

    D's update keeps what all layers of D return for real and fake images, G's update what those of both networks return for
    fakes. With accumulation, this holds for a micro-batch. The images themselves are kept for the whole step.
    """
    area = config.data.image_size**2
    discriminator = _DISCRIMINATOR * config.model.discriminator.channels
    generator = _GENERATOR * config.model.generator.channels
    kept = max(2 * discriminator, generator + discriminator) * area * _BYTES[config.training.precision]
    images = (config.data.channels or 1) * area * 4 * (1 + config.training.d_steps)
    return local_size * (kept / config.micro_batches + images)


def require_memory_for_samples(config: GanConfig, device: torch.device) -> None:
    """Raise UserError where a grid of samples or a score needs more memory than is free on ``device``.

    The lower bound is what G's last hidden layer takes and returns for the CHUNK images of a pass in float32.
    """
    if not config.samples.every and not config.evaluation.every:
        return
    needed, free = 1.5 * CHUNK * config.model.generator.channels * config.data.image_size**2 * 4, free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"data.image_size={config.data.image_size}: samples are made {CHUNK} at a time, which needs more than"
            f" {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free on {device.type}. Lower it or"
            " model.generator.channels, or set samples.every=0 and evaluation.every=0."
        )


def require_memory(config: RunConfig, needed: float, device: torch.device) -> None:
    """Raise UserError where ``needed`` bytes are more than are free on ``device``."""
    free = free_bytes(device)
    if device.type == "cpu":
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this machine
    if free is not None and needed > free:
        accumulation = ", or raise training.accumulation" if hasattr(config.training, "accumulation") else ""
        raise UserError(
            f"training.batch_size={config.training.batch_size}: needs more than {needed / 1e9:,.1f} GB of memory, and"
            f" {free / 1e9:,.1f} GB are free on {device.type}. Lower it, data.image_size or the networks' channels{accumulation}."
        )


def free_bytes(device: torch.device, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the free memory of ``device`` in bytes, within the limit of a container; None where it is not known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    with suppress(OSError, StopIteration, ValueError):
        lines = (proc / "meminfo").read_text().splitlines()
        found.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for limit, used, statistics in _CGROUPS:
        with suppress(OSError, StopIteration, ValueError):  # "max": no limit
            most, now = int((cgroup / limit).read_text()), int((cgroup / used).read_text())
            lines = (cgroup / statistics).read_text().splitlines()
            cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
            found.append(float(most - now + cached))
    return min(found, default=None)
