"""What the processes of one run agree on: devices, mistakes, and when to stop."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from gan.utils.errors import LostProcessError, TrainingDivergedError, UserError, first_line

T = TypeVar("T")


def make_accelerator(cpu: bool = False) -> Accelerator:
    """Devices and processes; ``cpu`` leaves GPUs alone. Precision is the run's own matter, see Job.

    Raises UserError when a launcher started several processes that do not know of each other: they would all write
    the same files.
    """
    # Scores are computed by one process while the others wait; NCCL's own patience is ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    accelerator = Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=[patience])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise UserError(
            f"{launched} processes were started, but they are not connected. On CPUs: ACCELERATE_USE_CPU=1 accelerate launch"
            f" --multi_gpu --num_processes {launched} --num_machines 1 --mixed_precision no --dynamo_backend no train.py ..."
        )
    # Exact resume needs the same sums in the same order.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 is what it says, also in the penalty of a bf16 run
    return accelerator


class AgreedError(UserError):
    """A mistake that ends every process of the run at the same point of the program."""


@contextmanager
def connected(cpu: bool = False) -> Iterator[Accelerator]:
    """Devices and processes for a command; processes part at its end, if all of them have come to one.

    Left to the interpreter's own end, gloo's threads abort the process now and then, after all work is done. A process
    that fails alone does not part from the others: it could wait for them, and they for it, for ever.
    """
    accelerator = make_accelerator(cpu)
    try:
        yield accelerator
    except (AgreedError, TrainingDivergedError, SystemExit):
        accelerator.end_training()
        raise
    except RuntimeError as error:
        if accelerator.num_processes > 1 and _is_lost_connection(error):
            raise LostProcessError(
                f"another process of the run has ended ({first_line(error)}), so this one stops too. Its own message says why,"
                " if it could say anything. The same command goes on from the newest checkpoint."
            ) from None
        raise
    accelerator.end_training()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether gloo or NCCL could not reach another process. gloo has no class of its own for that."""
    words = (
        "connection closed",
        "connection reset",
        "connection refused",
        "broken pipe",
        "timed out",
        "socket",
        "remote process",
    )
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """``function``'s result, run by the main process and sent to all. A UserError ends all, and one says it."""
    outcome: list[Any] = [None, "the main process failed"]
    try:
        if accelerator.is_main_process:
            outcome = [function(), None]
    except UserError as error:
        outcome = [None, str(error)]
    finally:  # whatever happened: the others are waiting
        broadcast_object_list(outcome)
    _end_if(outcome[1], accelerator)
    result: T = outcome[0]
    return result


def on_all(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """``function``'s own result, run by every process. A UserError on any of them ends all, and one says it."""
    result, mistake = None, None
    try:
        result = function()
    except UserError as error:
        mistake = str(error)
    _end_if(next((text for text in gather_object([mistake]) if text), None), accelerator)
    return cast(T, result)


def on_all_in_turn(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """As ``on_all``, one process of each machine first: it downloads, the others find it there."""
    first = on_all(accelerator, lambda: function() if accelerator.is_local_main_process else None)
    return on_all(accelerator, lambda: first or function())


def _end_if(mistake: str | None, accelerator: Accelerator) -> None:
    if mistake is not None:
        if accelerator.is_main_process:
            raise AgreedError(mistake)
        raise SystemExit(2)


class StopAskedError(Exception):
    """The run is to stop; raised on all processes together."""


class StopRequest:
    """Whether SIGTERM or Ctrl-C asked to stop; a second Ctrl-C stops at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.signal = 0
        self._processes = accelerator.num_processes
        # On the CPU and apart from the gradients', so that agreeing never waits for the device.
        self._group: Any = dist.new_group(backend="gloo") if self._processes > 1 else None

    def _handle(self, number: int, _frame: object) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any process was asked to stop: the same answer on all."""
        if self._group is not None:
            flag = torch.tensor(self.signal)
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
            self.signal = int(flag)
        return self.signal != 0

    def check(self) -> None:
        """Raises StopAskedError on all processes, if any of them was asked to stop."""
        if self.agreed():
            raise StopAskedError
