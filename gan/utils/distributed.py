"""The processes of one run: how they are connected, and how they agree on results, on errors and on when to stop."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from gan.utils.devices import is_cpu
from gan.utils.errors import LostProcessError, TrainingDivergedError, UserError, first_line

T = TypeVar("T")


def make_accelerator(device: str | None = None) -> Accelerator:
    """Return the devices and processes of this command; None takes a GPU where there is one. The run sets the precision.

    Raises UserError when a launcher started several processes that are not connected: they would all write the same files.
    """
    # One process computes scores while the others wait; NCCL gives up after ten minutes by default.
    timeout = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    if device is not None and device.startswith("cuda:"):
        torch.cuda.set_device(device)
    accelerator = Accelerator(mixed_precision="no", cpu=is_cpu(device), kwargs_handlers=[timeout])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise UserError(
            f"{launched} processes were started, but they are not connected. On CPUs: ACCELERATE_USE_CPU=1 accelerate launch"
            f" --multi_gpu --num_processes {launched} --num_machines 1 --mixed_precision no --dynamo_backend no train.py ..."
        )
    # Exact resume needs the same sums in the same order.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, also in the penalty of a bf16 run
    return accelerator


class AgreedError(UserError):
    """A user's mistake that ends every process of the run at the same point of the program."""


@contextmanager
def connected(device: str | None = None) -> Iterator[Accelerator]:
    """Connect the processes of a command, and disconnect them at its end if all of them reach one.

    Without the explicit end, gloo's threads abort the process now and then after all work is done. A process that fails
    alone does not disconnect: it could wait for the others, and they for it, for ever.

    Raises LostProcessError when another process of the run has ended.
    """
    accelerator = make_accelerator(device)
    try:
        yield accelerator
    except (AgreedError, TrainingDivergedError, SystemExit):
        accelerator.end_training()
        raise
    except RuntimeError as error:
        if accelerator.num_processes > 1 and _is_lost_connection(error):
            raise LostProcessError(
                f"another process of the run has ended ({first_line(error)}), so this one stops too. Its own message says why,"
                " if it could. The same command resumes from the newest checkpoint."
            ) from None
        raise
    accelerator.end_training()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether gloo or NCCL could not reach another process. gloo raises no class of its own for that."""
    connection = ("connection closed", "connection reset", "connection refused")
    words = (*connection, "broken pipe", "timed out", "socket", "remote process")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Run ``function`` on the main process and return its result on all. A UserError ends all; the main process reports it."""
    outcome: list[Any] = [None, "the main process failed"]
    try:
        if accelerator.is_main_process:
            outcome = [function(), None]
    except UserError as error:
        outcome = [None, str(error)]
    finally:  # in every case, since the others are waiting
        broadcast_object_list(outcome)
    _end_if(outcome[1], accelerator)
    result: T = outcome[0]
    return result


@contextmanager
def agree_on_errors(accelerator: Accelerator) -> Iterator[None]:
    """Run the block on every process. A UserError on any of them ends all after the block; the main process reports it.

    The block must not communicate: a process that has failed is not there to answer.
    """
    mistake = None
    try:
        yield
    except AgreedError:
        raise
    except UserError as error:
        mistake = str(error)
    _end_if(next((text for text in gather_object([mistake]) if text), None), accelerator)


def on_all(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Run ``function`` on every process, within ``agree_on_errors``, and return this process's result."""
    with agree_on_errors(accelerator):
        result = function()
    return result  # noqa: RET504 (mypy takes every context manager for one that may swallow an exception)


def only_on_main(accelerator: Accelerator, function: Callable[[], T]) -> T | None:
    """As ``on_all``, with None on the other processes, which do not run ``function``."""
    return on_all(accelerator, lambda: function() if accelerator.is_main_process else None)


def on_all_in_turn(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """As ``on_all``, one process of each machine first: it downloads, the others find the file there."""
    first = on_all(accelerator, lambda: function() if accelerator.is_local_main_process else None)
    return on_all(accelerator, lambda: first or function())


def _end_if(mistake: str | None, accelerator: Accelerator) -> None:
    if mistake is not None:
        if accelerator.is_main_process:
            raise AgreedError(mistake)
        raise SystemExit(2)


class StopAskedError(Exception):
    """The run is to stop; raised on all processes together."""


_FAILED = 1000  # in place of a signal's number


class StopRequest:
    """Within its context, SIGTERM and Ctrl-C ask the run to stop after the present step; a second Ctrl-C ends it at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.signal = 0  # the number of the signal that asked to stop
        self._processes = accelerator.num_processes
        # A gloo group on the CPU, apart from the gradients' one, so that agreeing never waits for the device.
        self._group: Any = dist.new_group(backend="gloo") if self._processes > 1 else None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, *, failed: bool = False) -> bool:
        """Return whether any process was asked to stop, or has ``failed``: the same answer on all."""
        if failed:
            self.signal = self.signal or _FAILED
        if self._group is not None:
            flag = torch.tensor(self.signal)
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
            self.signal = int(flag)
        return self.signal != 0

    def check(self) -> None:
        """Raise StopAskedError on all processes if any of them was asked to stop."""
        if self.agreed():
            raise StopAskedError
