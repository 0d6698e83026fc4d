"""Measure programs alternately in one run, each in a process of its own, since the allocator is a setting of a process."""

import gc
import importlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
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

    Raises the error of a candidate that fails.
    """
    timings = {name: Timing() for name in candidates}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(1, _context, _start, (candidate, dict(os.environ))))
            for name, candidate in candidates.items()
        }
        for process in processes.values():
            process.submit(_time, warm_up).result()
        for _ in range(rounds):
            for name, process in processes.items():
                timing = timings[name]
                seconds, timing.value, timing.peak_mb = process.submit(_time, units).result()
                timing.seconds.append(seconds / units)
    return timings


def value_of(candidate: Candidate) -> Any:
    """Return the value of one unit of ``candidate``, which runs alone in a process of its own."""
    return compete({"": candidate}, rounds=1, warm_up=0)[""].value


_case: Case  # of a candidate's process


def _start(candidate: Candidate, environment: Mapping[str, str]) -> None:
    global _case
    os.environ.update(environment)
    if not candidate.keep_blocks:
        os.environ["MSNGAN_ALLOCATOR"] = "system"
    multiprocessing.set_start_method(None, force=True)  # processes of the case start as they would for a user
    os.dup2(2, 1)  # keeps the output of libraries out of the table
    keep_large_blocks()
    module, _, function = candidate.make.partition(":")
    _case = getattr(importlib.import_module(module), function)(**candidate.settings)


def _time(units: int) -> tuple[float, Any, float]:
    """Return the seconds of ``units`` units, the value of the last one and the peak memory."""
    value = None
    gc.collect()
    began = time.perf_counter()
    for _ in range(units):
        value = _case()
    return time.perf_counter() - began, value, peak_memory(os.getpid())


def peak_memory(process: int) -> float:
    """Return the peak memory of a running ``process`` in MB. getrusage would start from the peak of its parent."""
    status = Path(f"/proc/{process}/status").read_text()
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
