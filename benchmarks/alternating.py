"""Programs measured alternately in one run, each in a process of its own, since the allocator is a process's setting."""

import gc
import importlib
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
# A server that has imported what takes seconds, and has neither started a thread nor set the allocator: each contestant is
# forked from it, as good as new.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.steps", "eval.scoring", "study.speed"])
# A case: does one unit of the work that is timed, and returns what shows that it was done.
Case = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """A program: ``make``, as MODULE:FUNCTION, returns the case when it is called with ``settings``."""

    make: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep_blocks: bool = True  # the allocator as the project sets it, or as the system has it


@dataclass
class Timing:
    """What was measured of one contestant."""

    seconds: list[float] = field(default_factory=list)  # of a unit, by round
    value: Any = None  # of the last unit
    peak_mb: float = 0.0  # of the process's memory, with all that it needed to get ready

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compete(contestants: Mapping[str, Candidate], *, rounds: int, units: int = 1, warm_up: int = 1) -> dict[str, Timing]:
    """Each contestant in turn does ``units`` units of its work, ``rounds`` times; the others wait meanwhile.

    Raises RuntimeError when one of them fails; what it wrote to stderr is shown.
    """
    timings = {name: Timing() for name in contestants}
    with ExitStack() as stack:
        running = {name: stack.enter_context(_Process(contestant)) for name, contestant in contestants.items()}
        for process in running.values():
            process.ask(warm_up)
        for _ in range(rounds):
            for name, process in running.items():
                answer = process.ask(units)
                timings[name].seconds.append(answer["seconds"] / units)
                timings[name].value, timings[name].peak_mb = answer["value"], answer["peak_mb"]
    return timings


class _Process:
    """A contestant at work in a process of its own."""

    def __init__(self, contestant: Candidate) -> None:
        self._contestant = contestant
        self._connection, other = _context.Pipe()
        environment = dict(os.environ)
        if not contestant.keep_blocks:
            environment["MSNGAN_ALLOCATOR"] = "system"
        self._process = _context.Process(target=_work, args=(contestant, environment, other))
        self._process.start()
        other.close()

    def ask(self, units: int) -> dict[str, Any]:
        try:
            self._connection.send(units)
            return dict(self._connection.recv())
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"{self._contestant.make} failed with exit code {self._process.exitcode}") from None

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _work(contestant: Candidate, environment: Mapping[str, str], connection: Connection) -> None:
    """A contestant's process: does as many units as it is asked for, and answers, until nobody asks any more."""
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # its own processes are started as a user's would be
    os.dup2(2, 1)  # what a library prints is no line of the table
    keep_large_blocks()
    module, _, function = contestant.make.partition(":")
    case: Case = getattr(importlib.import_module(module), function)(**contestant.settings)
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
    """The most that a running ``process`` has held, in MB. Of its own: getrusage's would begin at what the process that
    started it held."""
    status = Path(f"/proc/{process}/status").read_text()
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
