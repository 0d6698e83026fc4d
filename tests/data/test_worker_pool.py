"""Workers give the values of one process, in order, and no wait for them is without an end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan.data import worker_pool
from gan.data.worker_pool import WorkerPool, compute_batches
from gan.runs import checkpoints
from gan.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def square(index: int) -> int:
    return index * index


def large(index: int) -> np.ndarray:
    return np.full(2**20, index % 256, np.uint8)


def fail_at_seven(index: int) -> int:
    if index == 7:
        raise KeyError("seven")
    return index


def stop_at_seven(index: int) -> int:
    if index == 7:
        os.kill(os.getpid(), signal.SIGSTOP)
    return index


def die_at_seven(index: int) -> int:
    if index == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def slow(index: int) -> int:
    time.sleep(0.2)
    return index


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_values_come_in_order(workers: int) -> None:
    batches = [list(range(first, first + size)) for first, size in ((5, 3), (0, 200), (9, 0), (7, 1), (1, 64), (1, 65))]
    assert list(compute_batches(square, batches, workers)) == [[square(index) for index in batch] for batch in batches]
    assert list(compute_batches(square, [], workers)) == []


def test_batches_without_end_are_computed_only_some_ahead() -> None:
    asked: list[int] = []

    def batches():
        for number in count():
            asked.append(number)
            yield [number] * 10

    found = compute_batches(large, batches(), 2)
    for number in range(5):
        assert [value[0] for value in next(found)] == [number] * 10
        assert len(asked) <= number + 5
    found.close()


def test_an_exception_of_the_function_is_an_error_of_the_program() -> None:
    with pytest.raises(RuntimeError, match=r"in a worker process: KeyError: 'seven'"):
        list(compute_batches(fail_at_seven, [[1, 2], [6, 7]], 2))


def test_a_killed_worker_is_one_line_and_leaves_no_process() -> None:
    began = time.monotonic()
    pool = WorkerPool(die_at_seven, [[1, 2], [6, 7]], 2)
    try:
        with pytest.raises(UserError, match=r"was ended by SIGKILL.*Lower data.workers"):
            while pool.next() is not None:
                pass
    finally:
        pool.close()
    assert time.monotonic() - began < 5
    assert not any(worker.process.is_alive() for worker in pool._workers)


@pytest.mark.slow
def test_a_worker_that_stands_still_is_given_up_but_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "PATIENCE", 1.0)
    monkeypatch.setattr(worker_pool, "_REPORT", 0.1)
    assert list(compute_batches(slow, [list(range(20))], 1)) == [list(range(20))]  # four seconds
    pool = WorkerPool(stop_at_seven, ([index] for index in range(100)), 2)
    try:
        with pytest.raises(UserError, match=r"stands still: no image for [12] s"):
            while pool.next() is not None:
                pass
    finally:
        pool.close()
    assert not any(worker.process.is_alive() for worker in pool._workers)


def test_a_wait_ends_when_a_stop_is_asked() -> None:
    pool = WorkerPool(stop_at_seven, [[7]], 1)
    began = time.monotonic()
    assert pool.next(lambda: time.monotonic() - began > 0.5) is None
    pool.close()
    assert time.monotonic() - began < 5


def test_results_need_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no /dev/shm")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    monkeypatch.setattr("torch.UntypedStorage._new_using_fd_cpu", refuse)
    monkeypatch.setattr("torch.UntypedStorage._new_using_filename_cpu", refuse)
    assert [value[0] for value in next(compute_batches(large, [[3, 4]], 2))] == [3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("at_work", [False, True])
def test_workers_end_at_once_with_the_process_that_started_them(at_work: bool, tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from gan.data.worker_pool import WorkerPool\n"
        "from tests.data.test_worker_pool import large\n"
        f"pool = WorkerPool(large, ([1] * 8 for _ in range({20 if at_work else 0})), 3)\n"
        f"{'pool.next()' if at_work else ''}\n"
        "print(*(worker.process.pid for worker in pool._workers), flush=True)\n"
        "time.sleep(1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with (tmp_path / "workers").open("w") as file:  # not a pipe, whose reader would wait for the workers
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=file, timeout=60, check=False)
    end = time.monotonic() + 2
    numbers = (tmp_path / "workers").read_text().split()
    assert len(numbers) == 3
    for number in numbers:
        while _runs(int(number)):
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_of_a_fork_server_waits_as_long_as_the_main_process_lives() -> None:
    script = (  # a fork server is how Python 3.14 starts processes
        "import multiprocessing, time\n"
        "from gan.data.worker_pool import WorkerPool\n"
        "from tests.data.test_worker_pool import square\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('forkserver')\n"
        "    pool = WorkerPool(square, ([index] for index in range(40)), 1)\n"
        "    print(pool.next())\n"
        "    time.sleep(6)\n"
        "    print(*(pool.next() for _ in range(39)))\n"
        "    pool.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"[{index * index}]" for index in range(40)]


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_worker_is_noticed_while_the_other_keeps_up() -> None:
    pool = WorkerPool(square, ([index] for index in count()), 2)
    try:
        assert pool.next() == [0]
        time.sleep(0.5)  # every batch ahead is done: nobody will wait for the killed worker
        os.kill(pool._workers[0].process.pid or 0, signal.SIGKILL)
        pool._workers[0].process.join(10)
        time.sleep(0.5)
        with pytest.raises(UserError, match="ended by SIGKILL"):
            pool.next()
    finally:
        pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stopped", "killed", "stopped and SIGTERM"])
def test_a_streamed_run_without_a_worker_ends_with_its_steps_saved(
    what: str, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(64):
        Image.fromarray(draw.integers(0, 256, (48, 48, 3), np.uint8)).save(folder / f"{index}.png")
    run = tmp_path / "runs" / "tiny"
    settings = ["data.name=folder", f"data.path={folder}", "data.memory_gb=0", "training.steps=100000", "samples.every=0"]
    program = (  # train.py with less patience
        "import sys, train; from gan.data import worker_pool; from gan.utils import cli; worker_pool.PATIENCE = 4.0; "
        "sys.exit(cli.run(lambda: train.main(sys.argv[1:])))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *tiny(*settings, "training.d_steps=2", "checkpoint.every=100000")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL if what == "killed" else signal.SIGSTOP)
        began = time.monotonic()
        if what == "stopped and SIGTERM":
            time.sleep(2)
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert "Traceback" not in errors
    (saved,) = checkpoints.steps(run / "checkpoints")
    step = int(saved.name.removeprefix("step-"))
    assert step >= 3
    if what == "stopped and SIGTERM":
        assert process.returncode == 128 + signal.SIGTERM
        assert f"stopped by SIGTERM at step {step}, saved." in errors
    else:
        assert process.returncode == 2
        assert errors.splitlines()[-1].startswith("error: a worker process that decodes images")
        assert f"The run is saved up to step {step}; the same command resumes from there" in errors
    assert not any(_runs(int(child)) for child in children)


def lack_memory(index: int) -> int:
    raise MemoryError


def test_a_worker_without_memory_is_one_line() -> None:
    with pytest.raises(UserError, match=r"ran out of memory\. Lower data\.workers"):
        list(compute_batches(lack_memory, [[0, 1]], 1))
