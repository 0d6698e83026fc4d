"""Programs measured alternately in one run, each in a process of its own, since the allocator is a process's setting."""

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gan.allocator import keep_large_blocks

ROOT = Path(__file__).resolve().parent.parent
# A case: does one unit of the work that is timed, and returns what shows that it was done, as JSON would hold it.
Case = Callable[[], Any]


@dataclass(frozen=True)
class Contestant:
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


def compete(contestants: Mapping[str, Contestant], *, rounds: int, units: int = 1, warm_up: int = 1) -> dict[str, Timing]:
    """Each contestant in turn does ``units`` units of its work, ``rounds`` times; the others wait meanwhile.

    Raises subprocess.CalledProcessError when one of them fails; what it wrote to stderr is shown.
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

    def __init__(self, contestant: Contestant) -> None:
        environment = dict(os.environ)
        if not contestant.keep_blocks:
            environment["MSNGAN_ALLOCATOR"] = "system"
        words = [sys.executable, "-m", "benchmarks.contest", contestant.make, json.dumps(dict(contestant.settings))]
        self._process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._in: IO[str] = _open(self._process.stdin)
        self._out: IO[str] = _open(self._process.stdout)

    def ask(self, units: int) -> dict[str, Any]:
        print(units, file=self._in, flush=True)
        line = self._out.readline()
        if not line:
            raise subprocess.CalledProcessError(self._process.wait(), self._process.args)
        return dict(json.loads(line))

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._in.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()


def peak_memory(process: int) -> float:
    """The most that a running ``process`` has held, in MB. Of its own: getrusage's would begin at what the process that
    started it held."""
    status = Path(f"/proc/{process}/status").read_text()
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def main(arguments: Sequence[str]) -> int:
    """One contestant's process: does as many units as each line of stdin says, and answers with a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contest")
    parser.add_argument("make")
    parser.add_argument("settings", type=json.loads)
    options = parser.parse_args(arguments)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    keep_large_blocks()
    module, _, function = options.make.partition(":")
    case: Case = getattr(importlib.import_module(module), function)(**options.settings)
    value = None
    for line in sys.stdin:
        gc.collect()
        began = time.perf_counter()
        for _ in range(int(line)):
            value = case()
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "value": value, "peak_mb": peak_memory(os.getpid())}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
