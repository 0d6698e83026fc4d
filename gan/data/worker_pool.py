"""Values of a function computed ahead by worker processes, in order, with a bound on every wait.

Results come through pipes. A DataLoader of torch passes them through /dev/shm: where that is too small, as in a container by
default, it waits for ever.
"""

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from gan.utils.errors import UserError

T = TypeVar("T")
Task = tuple[int, int, list[int]]  # number of the batch, number of its piece, indices

PATIENCE = 25.0  # seconds without a result from a worker that has work, after which it is given up
_GRACE = 40  # seconds from SIGTERM to a worker's end; a run saves and stops within 30
_PIECE = 64  # most indices in one message
_ASSIGNED = 4  # most pieces that wait in a worker's pipe: few enough that sending one never waits
_REPORT = 1.0  # seconds after which a worker sends what it has of a piece
_POLL = 0.1  # seconds between two looks at what else may have happened
# Pipe ends of this process. A forked worker closes its copies: they would keep the pipes open after the end of the main process.
_NO_MEMORY = "MemoryError"  # what a worker sends when it has run out of memory
_MAIN_ENDS: "weakref.WeakSet[Connection]" = weakref.WeakSet()


@dataclass(eq=False)
class _Worker(Generic[T]):
    process: BaseProcess
    connection: Connection
    assigned: int = 0  # pieces that have been sent and not come back
    silent: float = 0.0  # seconds of waiting since its last message
    lost: bool = False
    partial: list[T] = field(default_factory=list)  # results of the piece that it is at


class WorkerPool(Generic[T]):
    """Computes ``function(index)`` for the indices of each batch of ``batches``, some batches ahead, in ``workers`` processes.

    A mistake of one index must be a value of ``function``: an exception ends the pool.
    """

    def __init__(self, function: Callable[[int], T], batches: Iterable[list[int]], workers: int) -> None:
        assert workers > 0
        self._batches = enumerate(batches)
        self._ahead = max(2, min(2 * workers, 8))  # batches that are computed before they are asked for
        self._sizes: dict[int, int] = {}  # pieces of each batch that has been started
        self._waiting: deque[Task] = deque()  # pieces that no worker has yet
        self._done: dict[tuple[int, int], list[T]] = {}
        self._failure: str | None = None
        self._next, self._closed = 0, False
        self._changed = threading.Condition()
        self._workers = [self._start(function) for _ in range(workers)]
        self._reader = threading.Thread(target=self._read_results, daemon=True)
        self._reader.start()

    def _start(self, function: Callable[[int], T]) -> _Worker[T]:
        ours, theirs = multiprocessing.Pipe()
        _MAIN_ENDS.add(ours)
        process = multiprocessing.Process(target=_work, args=(theirs, function), daemon=True)
        process.start()
        theirs.close()  # so that the worker's end is noticed
        return _Worker(process, ours)

    def next(self, stopping: Callable[[], bool] = lambda: False) -> list[T] | None:
        """Return the values of the next batch; None after the last one, or when ``stopping()`` is true during the wait.

        Raises UserError for a worker that was killed or stands still, RuntimeError for an exception of the function.
        """
        with self._changed:
            for number, indices in islice(self._batches, self._next + self._ahead - len(self._sizes)):
                size = max(1, min(_PIECE, -(-len(indices) // len(self._workers))))  # all workers share a batch
                pieces = [indices[start : start + size] for start in range(0, len(indices), size)]
                self._sizes[number] = len(pieces)
                self._waiting.extend((number, piece, part) for piece, part in enumerate(pieces))
            self._assign()
            if self._next not in self._sizes:
                return None
            self._check(0.0)  # a worker may have been killed while the others kept up
            wanted = [(self._next, piece) for piece in range(self._sizes[self._next])]
            before = time.monotonic()
            while not all(key in self._done for key in wanted):
                if stopping():
                    return None
                self._changed.wait(_POLL)
                now = time.monotonic()
                self._check(min(now - before, 1.0))  # a longer one means that this process stood still itself
                before = now
            self._next += 1
            return [value for key in wanted for value in self._done.pop(key)]

    def _assign(self) -> None:
        """Send waiting pieces to the workers that have the fewest."""
        while self._waiting:
            worker = min(self._workers, key=lambda worker: worker.assigned + _ASSIGNED * worker.lost)
            if worker.assigned >= _ASSIGNED or worker.lost:
                return
            try:
                worker.connection.send(self._waiting[0])
            except OSError:
                worker.lost = True
                continue
            self._waiting.popleft()
            worker.silent = 0.0 if worker.assigned == 0 else worker.silent
            worker.assigned += 1

    def _read_results(self) -> None:
        """Take what the workers send, until the pool is closed. Runs in a thread of its own."""
        while not self._closed:
            by_connection = {worker.connection: worker for worker in self._workers if not worker.lost}
            if not by_connection:
                return
            for connection in wait(list(by_connection), _POLL):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    message = None
                with self._changed:
                    self._take(by_connection[connection], message)
                    self._changed.notify_all()

    def _take(self, worker: _Worker[T], message: Any) -> None:
        worker.silent = 0.0
        if message is None:
            worker.lost = True
        elif isinstance(message, str):
            self._failure = message
        else:
            number, piece, values, ended = message
            worker.partial += values
            if ended:
                self._done[number, piece], worker.partial = worker.partial, []
                worker.assigned -= 1
                self._assign()

    def _check(self, seconds: float) -> None:
        """Raise an error if a worker is lost, or has been silent for too long after another ``seconds``."""
        if self._failure == _NO_MEMORY:
            raise UserError("a worker process that decodes images ran out of memory. Lower data.workers, or free memory.")
        if self._failure is not None:
            raise RuntimeError(f"in a worker process: {self._failure}")
        for worker in self._workers:
            worker.silent += seconds if worker.assigned else 0.0
            if worker.lost:
                worker.process.join(1.0)
                code = worker.process.exitcode
                how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
                raise UserError(
                    f"a worker process that decodes images was ended {how}, which a system does when memory runs out."
                    " Lower data.workers, or free memory."
                    if code == -signal.SIGKILL
                    else f"a worker process that decodes images was ended {how}. data.workers=0 decodes without processes."
                )
            if worker.silent > PATIENCE:
                raise UserError(
                    f"a worker process that decodes images (process {worker.process.pid}) stands still: no image for"
                    f" {worker.silent:.0f} s. Check the disk or network of data.path; data.workers=0 decodes without processes."
                )

    def close(self) -> None:
        """End the workers at once, also those that stand still."""
        self._closed = True
        for worker in self._workers:
            worker.process.kill()  # SIGTERM would wait for a stopped one
        self._reader.join(2.0)
        for worker in self._workers:
            worker.process.join(2.0)
            worker.connection.close()


def compute_batches(
    function: Callable[[int], T], batches: Iterable[list[int]], workers: int, stopping: Callable[[], bool] = lambda: False
) -> Generator[list[T]]:
    """Yield ``function`` of the indices of each batch, computed by ``workers`` processes, or here where there are none.

    Ends early when ``stopping()`` is true. Raises as ``WorkerPool.next``. Closing the iterator ends the processes.
    """
    if workers == 0:
        for batch in batches:
            yield [function(index) for index in batch]
        return
    pool = WorkerPool(function, batches, workers)
    try:
        while (values := pool.next(stopping)) is not None:
            yield values
    finally:
        pool.close()


def _work(connection: Connection, function: Callable[[int], T]) -> None:
    """Compute pieces until the main process closes the pipe or ends. Runs in a worker process."""
    _leave_signals_to_the_main_process()
    parent = os.getppid()  # from Python 3.14 on a fork server, which ends with the main process
    for inherited in list(_MAIN_ENDS):
        inherited.close()
    try:
        while True:
            while not connection.poll(5.0):
                if os.getppid() != parent:  # another program that the main process has started may hold the pipe
                    return
            number, piece, indices = connection.recv()
            values: list[T] = []
            began = time.monotonic()
            for index in indices:
                values.append(function(index))
                if time.monotonic() - began > _REPORT:
                    connection.send((number, piece, values, False))
                    values, began = [], time.monotonic()
            connection.send((number, piece, values, True))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except MemoryError:
        connection.send(_NO_MEMORY)
    except Exception as error:  # noqa: BLE001 (reported by the main process)
        connection.send(f"{type(error).__name__}: {error}")


def _leave_signals_to_the_main_process() -> None:
    """Ignore SIGINT in a worker, and end it only some time after SIGTERM.

    A scheduler's SIGTERM and Ctrl-C reach all processes of a run, and the main process needs the workers to finish its
    step. They must not live on for good: multiprocessing, too, ends a remaining worker by SIGTERM, and then waits for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
