"""Measure programs alternately in one run, each in a process of its own, since the allocator is a setting of a process."""

import gc
import importlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gan.utils.memory import keep_large_blocks

ROOT = Path(__file__).resolve().parent.parent
# The fork server has imported what takes seconds, has started no thread and has not set the allocator.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.steps", "eval.scoring"])
Case = Callable[[], Any]  # does one unit of the timed work and returns a value that shows that it was done


@dataclass(frozen=True)
class Candidate:
    """A program: ``make`` is the MODULE:FUNCTION that returns the case when it is called with ``settings``."""

    make: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep_blocks: bool = True  # use the project's allocator setting; False: the system's


@dataclass
class Timing:
    """The measurements of one candidate."""

    seconds: list[float] = field(default_factory=list)  # of a unit, by round
    value: Any = None  # of the last unit
    peak_mb: float = 0.0  # memory of the process, set-up included

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def numbered(step: Callable[[int], Any]) -> Case:
    """Return a case that calls ``step`` with 0, 1, 2 and so on."""
    numbers = itertools.count()
    return lambda: step(next(numbers))


def compete(candidates: Mapping[str, Candidate], *, rounds: int, units: int = 1, warm_up: int = 1) -> dict[str, Timing]:
    """Time ``units`` units of each candidate in turn, ``rounds`` times, after ``warm_up`` units that are not counted.

    Raises RuntimeError when a candidate fails; its stderr is shown.
    """
    timings = {name: Timing() for name in candidates}
    with ExitStack() as stack:
        running = {name: stack.enter_context(_Process(candidate)) for name, candidate in candidates.items()}
        for process in running.values():
            process.ask(warm_up)
        for _ in range(rounds):
            for name, process in running.items():
                answer = process.ask(units)
                timings[name].seconds.append(answer["seconds"] / units)
                timings[name].value, timings[name].peak_mb = answer["value"], answer["peak_mb"]
    return timings


class _Process:
    """A candidate in a process of its own."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._connection, other = _context.Pipe()
        environment = dict(os.environ)
        if not candidate.keep_blocks:
            environment["MSNGAN_ALLOCATOR"] = "system"
        self._process = _context.Process(target=_serve, args=(candidate, environment, other))
        self._process.start()
        other.close()

    def ask(self, units: int) -> dict[str, Any]:
        try:
            self._connection.send(units)
            return dict(self._connection.recv())
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"{self._candidate.make} failed with exit code {self._process.exitcode}") from None

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _serve(candidate: Candidate, environment: Mapping[str, str], connection: Connection) -> None:
    """Time as many units as each request asks for, until the connection is closed."""
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # processes of the case start as they would for a user
    os.dup2(2, 1)  # keeps the output of libraries out of the table
    keep_large_blocks()
    module, _, function = candidate.make.partition(":")
    case: Case = getattr(importlib.import_module(module), function)(**candidate.settings)
    value = None
    with suppress(EOFError):
        while True:
            units = connection.recv()
            gc.collect()
            began = time.perf_counter()
            for _ in range(units):
                value = case()
            seconds = time.perf_counter() - began
            connection.send({"seconds": seconds, "value": value, "peak_mb": peak_memory(os.getpid())})


def peak_memory(process: int) -> float:
    """Return the peak memory of a running ``process`` in MB. getrusage would start from the peak of its parent."""
    status = Path(f"/proc/{process}/status").read_text()
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
