"""A sweep as an array job: its script, and a real Slurm that runs it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gan.launch.slurm import ArrayJob
from tests.conftest import TINY
from tests.launch.test_grid import DIGITS, sweep
from tests.launch.test_sweep import calm
from tests.training.test_resume import contents, last_step


def slurm(*words: str) -> str:
    """Return what a command of Slurm prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def _slurm() -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("Slurm is not installed: there is no sbatch")
    answer = subprocess.run(["sinfo", "-h", "-o", "%a"], capture_output=True, text=True, check=False)
    if answer.returncode or "up" not in answer.stdout:
        pytest.skip(f"Slurm does not run here: {' '.join(answer.stderr.split()) or 'no partition is up'}. Set SLURM_CONF.")


def test_a_script_is_valid_shell_and_holds_only_the_runs_that_are_left(
    run: Path, tiny: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.rename(tmp_path / "digits_msngan_seed0")
    steps = ("training.steps=4", "checkpoint.every=2", "samples.every=2")
    settings = [word for word in tiny(*steps) if not word.startswith("run.")]
    words = ["--config", str(DIGITS), "--set", *settings, f"run.dir={tmp_path}", "--slurm", "--at-once", "5"]
    assert sweep(*words, "--seeds", "0", "1", "2", "--nodes", "2", "--processes", "4", "--sbatch=--time=1:00:00") == 0
    script = tmp_path / "sweep.sbatch"
    assert f"wrote {script}: 2 tasks. Submit it with: sbatch {script}" in capsys.readouterr().out
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    lines = ["--array=1,2%5", "--nodes=2", "--ntasks-per-node=1", "--requeue", "--signal=TERM@120", "--time=1:00:00"]
    assert [line for line in lines if f"#SBATCH {line}\n" not in text] == []
    assert "--num_processes 8 --num_machines 2 --machine_rank $SLURM_NODEID" in text
    assert "run.name=digits_msngan_seed0" not in text
    assert sweep(*words, "--seeds", "0") == 0
    assert "nothing to submit" in capsys.readouterr().out


def test_arguments_reach_the_training_as_they_were_given(tmp_path: Path) -> None:
    words = ["data.path=a folder/it's here", "model.layers=[a,$HOME]"]
    job = ArrayJob([str(tmp_path / "print.py")], [words], [0], None, 1, 1, [])
    (tmp_path / "print.py").write_text("import sys; print(sys.argv[1:])")
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(job.script(tmp_path / "out"))
    variables = {**os.environ, "SLURM_ARRAY_TASK_ID": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script)], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == f"{words}\n"


@pytest.mark.faults
@pytest.mark.usefixtures("_slurm")
def test_an_array_of_four_runs_with_one_preempted_ends_as_undisturbed_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Long enough that a loaded machine delivers the signal before the end.
    longer = ["training.steps=100", "checkpoint.every=25", "checkpoint.keep=1", "samples.every=50"]
    settings = [*TINY, *longer, f"run.dir={tmp_path}"]
    names = [f"digits_msngan_d_lr-{rate}_seed{seed}" for seed in (0, 1) for rate in ("1e-4", "2e-4")]
    folders = [tmp_path / name for name in names]
    own = [[f"optimizer.d_lr={rate}", f"seed={seed}"] for seed in (0, 1) for rate in ("1e-4", "2e-4")]
    commands = [["--config", str(DIGITS), *settings, *o, f"run.name={name}"] for o, name in zip(own, names, strict=True)]
    expected = calm(folders, commands)
    words = ["--config", str(DIGITS), "--set", *settings, "optimizer.d_lr=1e-4,2e-4", "--seeds", "0", "1", "--slurm", "--submit"]
    assert sweep(*words) == 0
    job = capsys.readouterr().out.partition(" as job ")[2].partition(":")[0]

    end = time.monotonic() + 900
    while last_step(folders[1]) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    numbers = dict(line.split() for line in slurm("squeue", "-h", "-r", "-j", job, "-o", "%K %A").splitlines())
    # Slurm delivers the signal, but tells scancel to try again, which it does for more than a minute before it fails.
    sender = subprocess.Popen(["scancel", "--signal=TERM", numbers["1"]], stderr=subprocess.DEVNULL)
    states = []
    while (waiting := slurm("squeue", "-h", "-j", job, "-r", "-o", "%K %T %r")) and time.monotonic() < end:
        states += [line for line in waiting.splitlines() if line not in states]
        time.sleep(1)
    sender.wait(120)
    output = (tmp_path / f"slurm-{job}_1.out").read_text()
    with capsys.disabled():
        print("\n" + "\n".join(f"    task {line}" for line in states))
        print("\n".join(f"    {line}" for line in output.splitlines() if "step" in line or "srun" in line))
    assert "1 PENDING BeginTime" in states, "it was requeued"
    assert "stopped by SIGTERM at step" in output
    assert {folder.name: contents(folder) for folder in tmp_path.iterdir() if folder.is_dir()} == expected
