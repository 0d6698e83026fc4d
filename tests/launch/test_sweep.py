"""Sweeps of real trainings: killed, interrupted, diverged, in two processes; under Slurm in test_slurm.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.launch.test_grid import DIGITS, sweep
from tests.training.test_resume import contents, last_step
from tests.workers import in_process, train_to_the_end

ROOT = Path(__file__).resolve().parents[2]
OTHER = "model: {discriminator: {norm: spectral}}\nloss: {name: hinge}\n"
# One checkpoint is kept, since a stopped run saves at a step that an undisturbed one does not.
SHORT = ["training.steps=40", "checkpoint.every=8", "checkpoint.keep=1", "samples.every=10"]


def calm(folders: Sequence[Path], words: Sequence[Sequence[str]]) -> dict[str, dict[str, object]]:
    """Return the contents of the runs in ``folders`` after undisturbed trainings, which are removed."""
    found = {}
    for folder, arguments in zip(folders, words, strict=True):
        assert in_process(train_to_the_end, list(arguments)) == 0
        found[folder.name] = contents(folder)
        shutil.rmtree(folder)
    return found


def disturbed(words: list[str], when: Callable[[], bool], number: int) -> int:
    """Return the exit code of ``python -m gan sweep WORDS`` that gets signal ``number`` as soon as ``when`` is true."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "gan", "sweep", *words], cwd=ROOT, env=variables)
    end = time.monotonic() + 300
    while process.poll() is None and not when() and time.monotonic() < end:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be disturbed"
    process.send_signal(number)
    return process.wait(120)


@pytest.mark.faults
def test_a_sweep_killed_twice_and_interrupted_ends_with_the_runs_of_an_undisturbed_one(tmp_path: Path) -> None:
    other, runs = tmp_path / "other.yaml", tmp_path / "runs"
    other.write_text(OTHER)
    settings = [*TINY, *SHORT, f"run.dir={runs}"]
    words = ["--config", str(DIGITS), str(other), "--set", *settings, "optimizer.d_lr=1e-4,2e-4", "--seeds", "0", "1"]
    folders, commands = [], []
    for path in (DIGITS, other):
        for rate in ("1e-4", "2e-4"):
            for seed in (0, 1):
                name = f"{path.stem}_d_lr-{rate}_seed{seed}"
                own = [f"optimizer.d_lr={rate}", f"seed={seed}", f"run.name={name}"]
                folders.append(runs / name)
                commands.append(["--config", str(path), *settings, *own])
    expected = calm(folders, commands)

    def reached(steps: int) -> Callable[[], bool]:
        return lambda: sum(map(last_step, folders)) >= steps

    words += ["--at-once", "2"]
    assert disturbed(words, reached(10), signal.SIGKILL) == -signal.SIGKILL
    assert disturbed(words, reached(110), signal.SIGKILL) == -signal.SIGKILL
    assert disturbed(words, reached(200), signal.SIGINT) == 130
    assert sum(map(last_step, folders)) < 8 * 40, "it was stopped before its end"
    assert subprocess.run([sys.executable, "-m", "gan", "sweep", *words], cwd=ROOT, check=False).returncode == 0
    assert {folder.name: contents(folder) for folder in runs.iterdir() if folder.is_dir()} == expected


@pytest.mark.slow
def test_a_run_that_diverges_is_named_and_ends_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*TINY, "training.steps=4", "checkpoint.every=2", "samples.every=0", f"run.dir={tmp_path}"]
    words = ["--config", str(DIGITS), "--set", *settings, "optimizer.d_lr=1e30,1e-4"]
    assert sweep(*words) == 0, "a diverged run is a result"
    error = capsys.readouterr().err
    assert "digits_msngan_d_lr-1e30: gradients have exploded" in error
    assert "2 runs: 1 done, 1 diverged (digits_msngan_d_lr-1e30)" in error
    assert sweep(*words) == 0
    error = capsys.readouterr().err
    assert "(failed before: gradients have exploded" in error
    assert "digits_msngan_d_lr-1e-4 (done)" in error
    assert sweep(*words, "--status") == 0
    assert "2 runs: 1 diverged, 1 done" in capsys.readouterr().out
    log = tmp_path / "digits_msngan_d_lr-1e30.log"
    attempts = log.read_text().count("from step 0 to 4")
    assert sweep(*words, "--retry") == 0
    assert "1 diverged" in capsys.readouterr().err
    assert log.read_text().count("from step 0 to 4") == attempts + 1


@pytest.mark.slow
def test_each_run_of_a_sweep_may_have_two_processes(tmp_path: Path) -> None:
    settings = [*TINY, "training.steps=2", "samples.every=0", f"run.dir={tmp_path}"]
    assert sweep("--config", str(DIGITS), "--processes", "2", "--set", *settings) == 0
    assert "2 processes on cpu" in (tmp_path / "digits_msngan.log").read_text()
    assert last_step(tmp_path / "digits_msngan") == 2
