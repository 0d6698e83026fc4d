"""Autocast: whether it is on, and blocks without it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast. Where there is none, it is empty: entering autocast costs more than some layers."""
    return torch.autocast(device, enabled=False) if is_autocast(device) else nullcontext()


def is_autocast(device: str) -> bool:
    """Return whether autocast is on. torch raises an error when it is asked about "meta", where nothing is computed."""
    return device != "meta" and torch.is_autocast_enabled(device)
