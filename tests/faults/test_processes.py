"""One run, one folder; and what a process does whose partner has died."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from gan.runs import checkpoints
from tests.conftest import command
from tests.faults.test_disks import ROOT, the_one_line
from tests.training.test_resume import contents
from tests.workers import run_to_the_end, run_together, start_together, train_here

Tiny = Callable[..., list[str]]
LONG = ["training.steps=100000", "checkpoint.every=2", "training.batch_size=4", "samples.every=0"]


def start(processes: int, arguments: list[str], errors: Path) -> list[ForkServerProcess]:
    """Start ``train.py`` in connected processes, whose stderr goes to the files ``errors``/RANK."""
    errors.mkdir(exist_ok=True)
    return start_together(processes, train_as_rank, arguments, errors)


def train_as_rank(arguments: list[str], errors: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of its workers, as in a program that is started at the shell
    run_to_the_end("train", arguments, errors / os.environ.get("RANK", "0"))


def wait_for(ready: Callable[[], object], alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end and alive()
        time.sleep(0.01)


@pytest.mark.slow
def test_a_second_process_is_told_who_holds_the_folder(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "tiny"
    (first,) = start(1, tiny(*LONG), tmp_path / "errors")
    wait_for(lambda: checkpoints.steps(run / "checkpoints"), first.is_alive)
    assert command(tiny(*LONG)) == 2
    line = the_one_line(capsys.readouterr().err)
    assert f"another process is training in it (process {first.pid} on {socket.gethostname()} since 20" in line
    first.terminate()
    first.join(60)
    assert (run / ".lock").read_bytes() == b""


@pytest.mark.slow
def test_workers_that_outlive_a_killed_run_do_not_hold_its_folder(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    streamed = tiny(*LONG, "data.memory_gb=0", "data.workers=2")
    (first,) = start(1, streamed, tmp_path / "errors")
    wait_for(lambda: checkpoints.steps(run / "checkpoints"), first.is_alive)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    assert len(children) >= 2
    for child in children:
        os.kill(int(child), signal.SIGSTOP)  # as slow as can be
    try:
        first.kill()
        first.join(60)
        assert command([*streamed, "training.steps=1"]) == 0
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def test_a_file_system_without_locks_is_named_and_the_run_goes_on(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert command(tiny("training.steps=2")) == 0
    assert "cannot be locked (No locks available): nothing keeps a second process out of it." in capsys.readouterr().err


def test_a_refused_process_leaves_the_folder_free(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny("training.steps=2", "checkpoint.every=1")) == 0
    root = tmp_path / "runs" / "tiny" / "checkpoints"
    for folder in checkpoints.steps(root):
        (folder / "optimizers.pt").rename(tmp_path / folder.name)
    assert command(tiny("training.steps=3", "checkpoint.every=1")) == 2
    for folder in checkpoints.steps(root):
        (tmp_path / folder.name).rename(folder / "optimizers.pt")
    assert command(tiny("training.steps=3", "checkpoint.every=1")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_when_one_of_two_processes_dies_the_other_says_so_and_the_run_goes_on(dying: int, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    processes = start(2, tiny(*LONG), tmp_path / "errors")
    wait_for(lambda: checkpoints.steps(run / "checkpoints"), lambda: all(process.is_alive() for process in processes))
    processes[dying].kill()
    other = processes[1 - dying]
    began = time.monotonic()
    other.join(60)
    assert time.monotonic() - began < 30
    errors = (tmp_path / "errors" / f"{1 - dying}").read_text()
    assert other.exitcode == 1, errors
    assert "another process of the run has ended" in the_one_line(errors)
    found = checkpoints.newest(run / "checkpoints", print)
    assert found is not None
    end = [f"training.steps={found.step + 2}", *LONG[1:]]
    for name in ("tiny", "calm"):
        run_together(2, train_here, tiny(*end, name=name))
    ends = [contents(tmp_path / "runs" / name) for name in ("tiny", "calm")]
    for end_of_one in ends:
        for path in [path for path in end_of_one if path.startswith("config.yaml") or "config" in path or "checkpoint." in path]:
            del end_of_one[path]  # have the run's name, and its checksum
    last = f"checkpoints/step-{found.step + 2:08d}/"
    assert {k: v for k, v in ends[0].items() if k.startswith(last)} == {k: v for k, v in ends[1].items() if k.startswith(last)}
    assert ends[0]["metrics.jsonl"] == ends[1]["metrics.jsonl"]


@pytest.mark.faults
def test_under_accelerates_launcher_a_death_ends_the_whole_run(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    words = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "train.py", *tiny(*LONG),
    ]  # fmt: skip
    with subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as launcher:  # fmt: skip
        wait_for(lambda: checkpoints.steps(run / "checkpoints"), lambda: launcher.poll() is None)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, errors = launcher.communicate(timeout=90)
    assert launcher.returncode != 0
    assert "another process of the run has ended" in errors or "stopped by SIGTERM" in errors, errors[-2000:]
    assert checkpoints.newest(run / "checkpoints", print) is not None
