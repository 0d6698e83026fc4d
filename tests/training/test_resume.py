"""A run that was killed, stopped or continued is the run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gan.runs import checkpoints
from tests.conftest import command
from tests.workers import in_process, run_together, train_and_die, train_here, train_to_the_end

TIMINGS = ("images_per_second", "seconds")
STEPS = [
    "training.steps=6", "checkpoint.every=2", "checkpoint.keep=1", "samples.every=3", "training.batch_size=4",
    "evaluation.every=3",
]  # fmt: skip


def contents(run: Path) -> dict[str, object]:
    """All that a run leaves behind, without timings and the record of its starts."""
    files: dict[str, object] = {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in ("metrics.jsonl", "environment.json")
    }
    lines = (run / "metrics.jsonl").read_text().splitlines()
    files["metrics.jsonl"] = [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]
    return files


def calm(arguments: list[str], run: Path) -> dict[str, object]:
    assert in_process(train_to_the_end, arguments) == 0
    return contents(run)


@pytest.mark.slow
def test_two_steps_and_two_more_are_four(tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    for norm in ("spectral", "mean_spectral"):
        settings = [f"model.discriminator.norm={norm}", "model.generator.norm=batch", "checkpoint.every=2"]
        assert command(tiny(*settings, "training.steps=4", name=f"whole-{norm}")) == 0
        for steps in (2, 4):
            assert command(tiny(*settings, f"training.steps={steps}", name=f"parts-{norm}")) == 0
        whole, parts = (
            checkpoints.load(checkpoints.folder_of(tmp_path / "runs" / f"{kind}-{norm}" / "checkpoints", 4))
            for kind in ("whole", "parts")
        )
        for name, weights in whole.weights.items():
            assert all(bool((weights[key] == parts.weights[name][key]).all()) for key in weights), name
        for player, optimizer in whole.optimizers.items():
            for index, moments in optimizer["state"].items():
                assert all(torch.equal(value, parts.optimizers[player]["state"][index][key]) for key, value in moments.items())


PARTS = ["checkpoint.every=2", "checkpoint.keep=1", "samples.every=2", "evaluation.every=1"]
HARD = [
    "training.precision=bf16", "loss.name=wgan-gp", "model.discriminator.norm=spectral", "training.d_steps=2", "data.flip=true",
    "data.memory_gb=0", "data.workers=1", "training.accumulation=2", "optimizer.name=rmsprop",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "processes"), [(HARD, 1), (["model.discriminator.norm=mean_spectral"], 2)])
def test_every_setting_and_several_processes_resume_bit_for_bit(
    settings: list[str], processes: int, tmp_path: Path, tiny: Callable[..., list[str]]
) -> None:
    run = tmp_path / "runs" / "tiny"
    ends = []
    for parts in ([4], [2, 4]):
        for steps in parts:
            run_together(processes, train_here, tiny(*settings, *PARTS, f"training.steps={steps}"))
        end = contents(run)
        # These name the steps that were planned when it was the best.
        for name in ("best/config.yaml", "best/checkpoint.json", "best/checkpoint.sha256"):
            del end[name]
        ends.append(end)
        subprocess.run(["rm", "-r", str(run)], check=True)
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_sigterm_to_the_whole_group_while_streaming_still_saves(tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    arguments = tiny("training.steps=10000", "data.memory_gb=0", "data.workers=2")
    run = tmp_path / "runs" / "tiny"
    with subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert len(checkpoints.steps(run / "checkpoints")) == 1


@pytest.mark.slow
def test_a_second_process_in_the_same_folder_is_refused_and_a_dead_ones_lock_is_not(
    tmp_path: Path, tiny: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny("training.steps=10000")
    run = tmp_path / "runs" / "tiny"
    with subprocess.Popen([sys.executable, "train.py", *arguments], stderr=subprocess.DEVNULL) as process:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            time.sleep(0.01)
        assert command(arguments) == 2
        assert "another process is training in it" in capsys.readouterr().err
        assert process.poll() is None
        process.kill()
    assert command([*arguments, "training.steps=2"]) == 0


@pytest.mark.slow
def test_a_run_killed_at_touches_of_the_disk_goes_on_bit_for_bit(tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    run = tmp_path / "runs" / "tiny"
    arguments = tiny(*STEPS)
    expected = calm(arguments, run)
    run.rename(tmp_path / "calm")
    at, kills = 1, 0
    while True:
        code = in_process(train_and_die, arguments, at)
        if code == 99:  # it reached the end before this moment
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert in_process(train_to_the_end, arguments) == 0
        assert contents(run) == expected, f"killed at touch {at}"
        subprocess.run(["rm", "-r", str(run)], check=True)
        at += 8  # tests/faults/test_kills.py dies at each
    assert kills > 10


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_random_moments_ends_the_same(tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    arguments = tiny(*STEPS, "training.steps=60", "checkpoint.every=1")
    run = tmp_path / "runs" / "tiny"
    began = time.monotonic()
    expected = calm(arguments, run)
    calm_seconds = time.monotonic() - began  # how fast the machine is today
    run.rename(tmp_path / "calm")
    moments = random.Random(0)
    codes = [in_process(train_to_the_end, arguments, kill_after=moments.uniform(0.1, 0.6) * calm_seconds) for _ in range(8)]
    assert -signal.SIGKILL in codes
    assert in_process(train_to_the_end, arguments) == 0
    assert contents(run) == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_says_so_and_goes_on_bit_for_bit(number: int, tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    # The program itself, whose scores are not scaled down for tests.
    arguments = tiny(*STEPS, "training.steps=40", "checkpoint.every=40", "evaluation.every=0")
    run = tmp_path / "runs" / "tiny"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "train.py", *arguments]
    expected = calm(arguments, run)
    run.rename(tmp_path / "calm")
    with subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name} at step" in errors
    assert "Traceback" not in errors
    assert checkpoints.steps(run / "checkpoints")
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(run) == expected


def test_a_finished_run_is_left_alone(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    assert command(["--config", str(finished_run / "config.yaml")]) == 0
    assert "is complete at step 4" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, tiny: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny("training.steps=4", "checkpoint.every=2")
    run = tmp_path / "runs" / "tiny"
    assert command(arguments) == 0
    expected = contents(run)
    weights = run / "checkpoints" / "step-00000004" / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert command(arguments) == 0
    errors = capsys.readouterr().err
    assert "step-00000004: generator.safetensors has" in errors
    assert "Resuming from step 2 instead." in errors
    assert "from step 2 to 4" in errors
    aside = run / "checkpoints" / "damaged-step-00000004"
    assert (aside / "generator.safetensors").exists()  # set aside, not lost
    subprocess.run(["rm", "-r", str(aside)], check=True)
    assert contents(run) == expected


def test_a_damaged_checkpoint_never_counts_among_those_to_keep(tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    assert command(tiny("training.steps=4", "checkpoint.every=2")) == 0
    root = tmp_path / "runs" / "tiny" / "checkpoints"
    (root / "step-00000004" / "optimizers.pt").unlink()
    # The next one to be saved, 3, sorts before the damaged one.
    assert command(tiny("training.steps=3", "checkpoint.every=1", "checkpoint.keep=1")) == 0
    assert [path.name for path in checkpoints.steps(root)] == ["step-00000003"]
    assert checkpoints.load(root / "step-00000003").step == 3


def test_no_whole_checkpoint_left_is_said_and_nothing_is_lost(
    tmp_path: Path, tiny: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny("training.steps=2", "checkpoint.every=2")) == 0
    run = tmp_path / "runs" / "tiny"
    (run / "checkpoints" / "step-00000002" / "checkpoint.json").write_text("{")
    before = contents(run)
    capsys.readouterr()
    assert command(tiny("training.steps=3", "checkpoint.every=2")) == 2
    assert "no whole checkpoint left" in capsys.readouterr().err
    assert contents(run) == before


@pytest.mark.parametrize(
    "name", ["generator.safetensors", "discriminator.safetensors", "ema.safetensors", "optimizers.pt", "config.yaml"]
)
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_noticed(finished_run: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "step-00000004"
    subprocess.run(["cp", "-r", str(finished_run / "checkpoints" / "step-00000004"), str(folder)], check=True)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} has been changed or damaged"):
        checkpoints.load(folder)
