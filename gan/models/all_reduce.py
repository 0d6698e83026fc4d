"""Means over the processes that share a batch, with derivatives."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return the number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverProcesses(torch.autograd.Function):
    """An all-reduce that can be differentiated any number of times.

    Every process's loss depends on every input, so an input's gradient is the sum of the processes' gradients.
    torch.distributed.nn has the same function, which is deprecated.
    """

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        result: Tensor = _SumOverProcesses.apply(gradient)
        return result


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of ``x`` over all processes, differentiable any number of times; ``x`` itself for a single process."""
    count = processes()
    return x if count == 1 else _SumOverProcesses.apply(x) / count


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes, not differentiable; ``x`` itself for a single process."""
    return x if processes() == 1 else _SumOverProcesses.forward(None, x)
