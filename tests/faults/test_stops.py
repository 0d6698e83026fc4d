"""A run that is asked to stop while it is being scored leaves at once, and its score is made when it goes on."""

import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gan import checkpoints
from tests.test_resume import contents
from tests.workers import _context, _in_environment, run_together, train_with_slow_scores

Tiny = Callable[..., list[str]]
STEPS = [
    "training.steps=4",
    "checkpoint.every=2",
    "checkpoint.keep=1",
    "evaluation.every=3",
    "samples.every=3",
    "training.batch_size=4",
]


def started(arguments: list[str], seconds: float, processes: int) -> list[multiprocessing.process.BaseProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
    found = []
    for rank in range(processes):
        environment = {
            "ACCELERATE_USE_CPU": "1",
            "OMP_NUM_THREADS": "1",
            **shared,
            **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {}),
        }
        process = _context.Process(target=_in_environment, args=(environment, train_with_slow_scores, (arguments, seconds)))
        process.start()
        found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "step"), [(1, 0), (1, 3), (1, 4), (2, 3)])
def test_a_run_stopped_while_it_is_scored_leaves_at_once_and_ends_as_the_calm_one(
    processes: int, step: int, tiny: Tiny, tmp_path: Path
) -> None:
    arguments, run = tiny(*STEPS), tmp_path / "runs" / "tiny"
    run_together(processes, train_with_slow_scores, arguments, 0.0)
    expected = contents(run)
    shutil.rmtree(run)

    def scoring() -> bool:
        """Whether the score of ``step`` is being made: its record is the last thing before, and ten turns of a second follow."""
        lines = run / "metrics.jsonl"
        return lines.exists() and (not step or f'"step": {step}, "d_loss"' in lines.read_text())

    workers = started(arguments, 1.0, processes)
    end = time.monotonic() + 100
    while not scoring():
        assert time.monotonic() < end and all(worker.is_alive() for worker in workers)
        time.sleep(0.01)
    time.sleep(1.5)
    os.kill(workers[-1].pid or 0, signal.SIGTERM)  # one of them is enough
    began = time.monotonic()
    for worker in workers:
        worker.join(60)
    assert time.monotonic() - began < 6, "it scored to the end"
    assert [worker.exitcode for worker in workers] == [128 + signal.SIGTERM] * processes
    newest = checkpoints.newest(run / "checkpoints", print)
    assert (newest.step if newest else 0) == step
    assert newest is None or not newest.looked
    run_together(processes, train_with_slow_scores, arguments, 0.0)
    assert contents(run) == expected
