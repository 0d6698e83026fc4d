"""Devices by name, checked before anything is computed on them."""

import os

import torch
from torch import Tensor

from gan.utils.errors import UserError


def usable_device(name: str | torch.device) -> torch.device:
    """Return the device ``name``, such as cpu, cuda or cuda:1. Raises UserError for one that is unknown or not here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # "meta" has no numbers to copy
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ImportError):
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise UserError(f"device {str(name)!r}: not a device of this machine, which has {', '.join(here)}.") from None
    return device


def is_cpu(name: str | None) -> bool:
    """Return whether the device ``name`` is a CPU, such as cpu or cpu:0; None is not."""
    return name is not None and torch.device(name).type == "cpu"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS lacks the first


def copy_to(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``tensor``, of the host, on ``device``. The host does not wait for a GPU: it copies from pinned memory."""
    source = tensor.pin_memory() if device.type == "cuda" else tensor
    return source.to(device, dtype or tensor.dtype, non_blocking=True)
