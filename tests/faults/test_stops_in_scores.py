"""A run that is asked to stop while it is being scored leaves at once, and its score is made when it goes on."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from gan.runs import checkpoints
from tests.faults.common import Tiny
from tests.training.test_resume import contents
from tests.workers import run_together, start_together, train_with_slow_scores

STEPS = [
    "training.steps=4", "training.batch_size=4", "checkpoint.every=2", "checkpoint.keep=1", "evaluation.every=3",
    "samples.every=3",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "step"), [(2, 3), *(pytest.param(1, step, marks=pytest.mark.faults) for step in (0, 3, 4))]
)
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

    workers = start_together(processes, train_with_slow_scores, arguments, 1.0)
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
    assert newest is None or not newest.evaluated
    run_together(processes, train_with_slow_scores, arguments, 0.0)
    assert contents(run) == expected
