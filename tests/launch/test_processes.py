"""The processes of a sweep, with small programs in place of trainings: exit codes, places, stops."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gan.config import GanConfig
from gan.launch.grid import PlannedRun
from gan.launch.processes import Resources, Sweep, launcher, log_of
from gan.runs.lock import lock_run
from gan.utils.errors import UserError
from gan.utils.settings import FolderConfig
from tests.workers import in_process

CPU = Resources(at_once=2, processes=1, gpus=())


def planned(folder: Path, *codes: str) -> list[PlannedRun[GanConfig]]:
    """Return runs whose programs are the lines of Python ``codes``."""
    return [
        PlannedRun(GanConfig(run=FolderConfig(dir=str(folder), name=f"run{number}")), ["-c", code])
        for number, code in enumerate(codes)
    ]


def sweep(
    runs: Sequence[PlannedRun[GanConfig]], resources: Resources = CPU, diverged: Sequence[str] = (), retry: bool = False
) -> int:
    def skip(config: GanConfig, retry: bool) -> str | None:
        return "failed before: nan" if config.run.name in diverged and not retry else None

    return Sweep(runs, [], skip, resources, retry=retry).train()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (["pass", "pass"], 0),
        (["raise SystemExit(2)", "pass"], 2),
        (["raise SystemExit(2)", "raise RuntimeError('a bug')"], 1),
        (["import os; os.kill(os.getpid(), 9)", "pass"], 1),
    ],
)
def test_the_exit_code_tells_whose_mistake_it_was(codes: list[str], expected: int, tmp_path: Path) -> None:
    assert sweep(planned(tmp_path / "runs", *codes)) == expected


def test_a_failed_run_is_named_with_its_error_and_ends_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gan")
    written = tmp_path / "written"
    codes = [
        "import sys; print('error: no such images.', file=sys.stderr); print('bye'); sys.exit(2)",
        "raise RuntimeError('a bug')",
        "import sys; print('error: not finite.'); sys.exit(1)",
        f"open({str(written)!r}, 'w')",
    ]
    runs = planned(tmp_path / "runs", *codes)
    assert sweep(runs, diverged=["run2"], retry=True) == 1
    text = caplog.text
    assert f"run0 failed, the sweep continues: no such images. (log: {log_of(runs[0])})" in text
    assert "run1 failed, the sweep continues: RuntimeError: a bug" in text
    assert "run2: not finite." in text
    assert "4 runs: 1 done, 1 diverged (run2), 2 failed (run0, run1)" in text
    assert written.exists()


def test_a_run_whose_log_cannot_be_written_ends_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = planned(tmp_path / "runs", "pass", "pass", f"open({str(tmp_path / 'written')!r}, 'w')")
    log_of(runs[1]).mkdir(parents=True)
    assert sweep(runs, Resources(at_once=1, processes=1, gpus=())) == 2
    assert f"run1 failed, the sweep continues: {log_of(runs[1])}: cannot be written to" in caplog.text
    assert (tmp_path / "written").exists()


def test_a_run_that_diverged_before_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gan")
    assert sweep(planned(tmp_path, "raise SystemExit(1)"), diverged=["run0"]) == 0
    assert "(failed before: nan)" in caplog.text
    assert "1 run: 0 done, 1 diverged (run0)" in caplog.text


@pytest.mark.slow
def test_as_many_runs_as_places_train_at_once_and_share_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    code = f"""
import os, pathlib, time
here = pathlib.Path({str(tmp_path)!r})
mine = here / f"on{{os.getpid()}}"
mine.touch()
time.sleep(0.5)
with open(here / "seen", "a") as file:
    print(len(list(here.glob("on*"))), os.environ["OMP_NUM_THREADS"], file=file)
mine.unlink()
"""
    assert sweep(planned(tmp_path / "runs", *[code] * 4)) == 0
    lines = (tmp_path / "seen").read_text().splitlines()
    assert len(lines) == 4
    assert max(lines) == "2 3"


def test_each_run_gets_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    single, double = Resources.of_this_machine(None, 1), Resources.of_this_machine(None, 2)
    assert (single.at_once, double.at_once) == (4, 2)
    assert [single.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["4", "5", "6", "7"]
    assert [double.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4,5", "6,7"]
    crowded = Resources.of_this_machine(6, 1)
    assert crowded.environment(5)["CUDA_VISIBLE_DEVICES"] == "5", "two runs share a GPU"
    assert Resources.of_this_machine(None, 2, "cpu:0").environment(0)["ACCELERATE_USE_CPU"] == "1"
    with pytest.raises(UserError, match="--device cuda:1: not for runs of 2 processes"):
        Resources.of_this_machine(None, 2, "cuda:1")
    assert Sweep(planned(Path("runs"), "pass"), [], lambda *_: None, Resources(10**9, 1, ())).resources.at_once == 1
    assert launcher(1, "1") == [sys.executable]
    assert " ".join(launcher(2, "1")).count("--num_processes 2 --num_machines 1 --main_process_port 1") == 1


WAITING = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path({saved!r}).touch()
    {then}
signal.signal(signal.SIGTERM, stop)
pathlib.Path({ready!r}).touch()
time.sleep(60)
"""


def waiting(folder: Path, then: str) -> list[PlannedRun[GanConfig]]:
    """Return three runs that wait for SIGTERM."""
    files = [{"saved": str(folder / f"saved{n}"), "ready": str(folder / f"ready{n}")} for n in range(3)]
    return planned(folder / "runs", *(WAITING.format(then=then, **own) for own in files))


def wait_for_signal(folder: Path) -> None:
    sweep(waiting(folder, "sys.exit(143)"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_the_runs_of_a_killed_sweep_stop_saved(tmp_path: Path) -> None:
    ready = [tmp_path / f"ready{n}" for n in range(2)]
    assert in_process(wait_for_signal, tmp_path, kill_when=lambda: all(map(Path.exists, ready))) == -signal.SIGKILL
    end = time.monotonic() + 30
    while len(list(tmp_path.glob("saved*"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]


def interrupted(folder: Path, then: str, signals: int) -> tuple[int, float]:
    """Return the exit code and the seconds of a sweep of three such runs that is sent Ctrl-C when two are ready."""

    def send() -> None:
        while not all((folder / f"ready{n}").exists() for n in range(2)):
            time.sleep(0.01)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    sender = threading.Thread(target=send)
    sender.start()
    began = time.monotonic()
    code = sweep(waiting(folder, then))
    sender.join()
    return code, time.monotonic() - began


def test_an_interrupt_stops_every_run_saved_and_starts_no_further_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gan")
    code, _ = interrupted(tmp_path, "sys.exit(143)", 1)
    assert code == 130
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    assert not (tmp_path / "ready2").exists()
    assert "stopped by SIGINT with 3 of 3 runs unfinished" in caplog.text


@pytest.mark.slow
def test_a_second_interrupt_ends_runs_that_do_not_stop(tmp_path: Path) -> None:
    code, seconds = interrupted(tmp_path, "", 2)
    assert code == 130
    assert seconds < 30


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gan")
    order = tmp_path / "order"
    runs = planned(tmp_path, *(f"open({str(order)!r}, 'a').write('{n}')" for n in range(2)))
    locked = threading.Event()

    def hold() -> None:
        with lock_run(runs[0].config.folder):
            locked.set()
            time.sleep(1.5)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    assert sweep(runs) == 0
    holder.join()
    assert order.read_text() == "10"
    assert caplog.text.count("another process is training in it. The sweep waits for it.") == 1
