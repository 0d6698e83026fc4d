"""Train the runs of a sweep in processes of their own, several at once; stop them all, saved, when the sweep is stopped."""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic

import torch

from gan.launch.grid import PlannedRun, count_runs
from gan.runs.lock import is_locked, writing_to
from gan.utils.devices import cores, is_cpu
from gan.utils.errors import UserError
from gan.utils.settings import C

log = logging.getLogger(__name__)
# Why a run needs no training, None where it does; a run that diverged before does where the second argument is true.
Skip = Callable[[C, bool], str | None]
INTERVAL = 0.2  # seconds between two looks at the processes
_TAIL = 2**16  # bytes of a log in which its last line is searched
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Resources:
    """What the runs share: GPUs, or the cores of the CPU."""

    at_once: int  # runs
    processes: int  # of each run
    gpus: Sequence[str]  # as CUDA_VISIBLE_DEVICES names them; empty: CPU

    @classmethod
    def of_this_machine(cls, at_once: int | None, processes: int, device: str | None = None) -> "Resources":
        """Return those of this machine, with as many runs at once as there are GPUs for, unless ``at_once`` says otherwise.

        GPUs are not shared out where every run is to use the same ``device``. Raises UserError for a GPU that several processes
        of a run are to share.
        """
        if device and not is_cpu(device) and processes > 1:
            raise UserError(
                f"--device {device}: not for runs of {processes} processes. Leave it out: each gets a GPU of its own."
            )
        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = 0 if device else torch.cuda.device_count()
        gpus = names.split(",")[:count] if names else [str(number) for number in range(count)]
        return cls(at_once or max(1, len(gpus) // processes), processes, gpus)

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of the run in ``slot``, from 0 to ``at_once`` - 1: its GPUs or its share of the threads."""
        if self.gpus:
            own = [self.gpus[(slot * self.processes + rank) % len(self.gpus)] for rank in range(self.processes)]
            return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}
        share = str(max(1, cores() // (self.at_once * self.processes)))
        return {"OMP_NUM_THREADS": share, **os.environ, **({"ACCELERATE_USE_CPU": "1"} if self.processes > 1 else {})}


def launcher(processes: int, port: str, machines: Sequence[str] = ("--num_machines", "1")) -> list[str]:
    """Return the words before a training program: Python, or accelerate's launcher for several processes in all."""
    if processes == 1:
        return [sys.executable]
    connection = ["--multi_gpu", "--num_processes", str(processes), *machines, "--main_process_port", port]
    return [sys.executable, "-m", "accelerate.commands.launch", *connection, "--mixed_precision", "no", "--dynamo_backend", "no"]


@dataclass(frozen=True)
class _Running(Generic[C]):
    run: PlannedRun[C]
    process: "subprocess.Popen[bytes]"
    slot: int
    log_start: int  # bytes of its log that earlier attempts wrote


class Sweep(Generic[C]):
    """The runs of a sweep in training."""

    def __init__(
        self, runs: Sequence[PlannedRun[C]], program: Sequence[str], skip: Skip[C], resources: Resources, *, retry: bool = False
    ) -> None:
        """``program`` is the training program as Python's arguments, such as a path, or -m and a module.

        With ``retry``, runs that diverged before are trained again.
        """
        self.runs, self.program, self.skip, self.retry = runs, program, skip, retry
        self.resources = replace(resources, at_once=min(resources.at_once, max(1, len(runs))))
        self._waiting = deque(runs)
        self._running: list[_Running[C]] = []
        self._mistakes: list[bool] = []  # of each failed run, whether its error was the user's mistake
        self._outcomes: dict[str, list[str]] = {"done": [], "diverged": [], "failed": []}  # names of runs
        self._held: set[Path] = set()  # folders in which a process of somebody else trains
        self._signals: list[int] = []  # that asked the sweep to stop
        self._told: Counter[int] = Counter()  # signals sent, by process

    def train(self) -> int:
        """Train every run that ``skip`` gives no reason to skip. A run that fails ends no other.

        Returns the exit code: 0, 128 and the number of the signal that stopped the sweep, 2 where each failed run is the
        user's mistake, else 1. Diverged runs are results, not failures.
        """
        with self._stopping():
            while self._running or (self._waiting and not self._signals):
                self._collect()
                if self._signals:
                    self._stop_all()
                else:
                    self._start_next()
                time.sleep(INTERVAL)
        if self._signals:
            left = len(self.runs) - sum(map(len, self._outcomes.values()))
            name = signal.Signals(self._signals[0]).name
            log.info(f"stopped by {name} with {left} of {len(self.runs)} runs unfinished. The same command resumes them.")
            return 128 + self._signals[0]
        log.info(f"{count_runs(len(self.runs))}: {self._summary()}")
        return (2 if all(self._mistakes) else 1) if self._mistakes else 0

    def _summary(self) -> str:
        """Return how many runs are done, and how many diverged or failed, by name."""
        bad = {outcome: names for outcome, names in self._outcomes.items() if names and outcome != "done"}
        return ", ".join(
            [f"{len(self._outcomes['done'])} done", *(f"{len(names)} {what} ({', '.join(names)})" for what, names in bad.items())]
        )

    def _start_next(self) -> None:
        """Start the first waiting run that is neither done nor trained by somebody else, if there is a free slot."""
        for _ in range(len(self._waiting)):
            if len(self._running) == self.resources.at_once:
                return
            run = self._waiting.popleft()
            if self._is_held(run):
                self._waiting.append(run)
            elif self._reason(run) is None:
                try:
                    self._start(run)
                except UserError as error:
                    self._fail(run, str(error), users=True)

    def _is_held(self, run: PlannedRun[C]) -> bool:
        folder = run.config.folder
        held = is_locked(folder)
        if held and folder not in self._held:
            log.info(f"{folder}: another process is training in it. The sweep waits for it.")
        (self._held.add if held else self._held.discard)(folder)
        return held

    def _reason(self, run: PlannedRun[C]) -> str | None:
        """Return why ``run`` is not started, which is reported."""
        try:
            reason = self.skip(run.config, self.retry)
        except UserError as error:
            self._fail(run, str(error), users=True)
            return str(error)
        number = self.runs.index(run) + 1
        log.info(f"run {number} of {len(self.runs)}: {run.config.folder} ({reason or f'log: {log_of(run)}'})")
        if reason is not None:
            self._outcomes["done" if reason == "done" else "diverged"].append(run.config.run.name)
        return reason

    def _start(self, run: PlannedRun[C]) -> None:
        slot = min(set(range(self.resources.at_once)) - {other.slot for other in self._running})
        words = launcher(self.resources.processes, _free_port())
        with writing_to(log_of(run)):
            run.config.folder.parent.mkdir(parents=True, exist_ok=True)
            with log_of(run).open("ab") as output:
                start = output.tell()
                # A group of its own, since the terminal's Ctrl-C would reach the run beside the signal of this process.
                process = subprocess.Popen(
                    [*words, *self.program, *run.words],
                    env=self.resources.environment(slot),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_ask_for_a_signal_when_the_parent_ends,
                )
        self._running.append(_Running(run, process, slot, start))

    def _collect(self) -> None:
        """Report the runs whose processes have ended."""
        for running in list(self._running):
            if (code := running.process.poll()) is not None:
                self._running.remove(running)
                if not (code and self._told[running.process.pid]):
                    self._report(running, code)

    def _report(self, running: _Running[C], code: int) -> None:
        run = running.run
        folder = run.config.folder
        if code == 2 and is_locked(folder):  # another sweep was faster
            self._waiting.append(run)
            return
        message = last_message(log_of(run), running.log_start)
        if code == 0:
            self._outcomes["done"].append(run.config.run.name)
            log.info(f"{folder}: done")
        elif code == 1 and self._has_diverged(run):
            self._outcomes["diverged"].append(run.config.run.name)
            log.info(f"{folder}: {message}")
        else:
            ended = f"ended by {signal.Signals(-code).name}" if code < 0 else message
            self._fail(run, f"{ended} (log: {log_of(run)})", users=code == 2)

    def _has_diverged(self, run: PlannedRun[C]) -> bool:
        try:
            return self.skip(run.config, False) is not None
        except UserError:
            return False

    def _fail(self, run: PlannedRun[C], message: str, *, users: bool) -> None:
        self._mistakes.append(users)
        self._outcomes["failed"].append(run.config.run.name)
        log.error(f"{run.config.folder} failed, the sweep continues: {message}")

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Within the block, SIGTERM and Ctrl-C stop all runs after their present step, saved; a second one ends them at once."""
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for running in self._running:  # there are none, unless the sweep itself has failed
                running.process.terminate()
            for running in self._running:
                running.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: object) -> None:
        self._signals.append(number)

    def _stop_all(self) -> None:
        """Pass the stop on to the runs: SIGTERM for the first signal, SIGKILL for the second."""
        for running in self._running:
            process = running.process.pid
            while self._told[process] < min(2, len(self._signals)):
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL) if self._told[process] else os.kill(process, signal.SIGTERM)
                self._told[process] += 1


def log_of(run: PlannedRun[C]) -> Path:
    """Return the file beside the run's folder to which its training writes what it prints."""
    return run.config.folder.with_name(run.config.folder.name + ".log")


def last_message(path: Path, start: int) -> str:
    """Return the last error that a training wrote to its log from byte ``start`` on, without it the last line."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError as error:  # somebody removed it
        return f"its log cannot be read ({error.strerror})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return [*lines[-1:], *errors[-1:]][-1] if lines else "no message"


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _ask_for_a_signal_when_the_parent_ends() -> None:
    """In a new process: ask Linux for SIGTERM when the sweep is killed, so that its runs stop, saved, and can be resumed."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
