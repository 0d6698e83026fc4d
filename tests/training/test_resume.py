"""A run that was killed, stopped or continued is the run that was not."""

import errno
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gan.runs import checkpoints, manifest
from tests.conftest import again, command
from tests.workers import in_process, run_to_the_end, run_together, train_and_die, train_here, train_to_the_end

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


def last_step(run: Path) -> int:
    """Return the last step of training that is recorded."""
    path = run / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []
    return max(steps, default=0)


def calm(arguments: list[str], run: Path) -> dict[str, object]:
    assert in_process(train_to_the_end, arguments) == 0
    return contents(run)


PARTS = ["checkpoint.every=2", "checkpoint.keep=1", "samples.every=2", "evaluation.every=2"]
HARD = [
    "training.precision=bf16", "loss.name=wgan-gp", "model.discriminator.norm=spectral", "training.d_steps=2", "data.flip=true",
    "data.memory_gb=0", "data.workers=0", "training.accumulation=2", "optimizer.name=rmsprop",
]  # fmt: skip
RELEASED = [
    "model.discriminator.norm=mean_spectral", "model.discriminator.gain=true",
    "model.discriminator.layer_norms=[spectral,spectral,spectral,mean_spectral,spectral,mean_spectral,mean_spectral,spectral]",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "processes"),
    [
        (HARD, 1),
        (["model.discriminator.norm=mean_spectral"], 2),
        ([*RELEASED, "training.d_batches=joint"], 1),
        ([*RELEASED, "training.d_batches=joint_quarter", "training.precision=bf16"], 1),
        (["model.discriminator.norm=mean_spectral", "training.d_batches=joint_d"], 1),
    ],
)
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
        at += 36  # tests/faults/test_kills.py dies at each
    assert kills > 2


@pytest.mark.slow
def test_a_stopped_run_saves_says_so_and_goes_on_bit_for_bit(tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    arguments = tiny(*STEPS, "training.steps=40", "checkpoint.every=40", "evaluation.every=0")
    run, errors = tmp_path / "runs" / "tiny", tmp_path / "errors"
    expected = calm(arguments, run)
    run.rename(tmp_path / "calm")
    saved = 0
    for number in (signal.SIGTERM, signal.SIGINT):

        def stepping(saved: int = saved) -> bool:
            return last_step(run) > saved

        code = in_process(run_to_the_end, "train", arguments, errors, kill_when=stepping, signals=(number,))
        assert code == 128 + number
        assert f"stopped by {signal.Signals(number).name} at step" in errors.read_text()
        assert "Traceback" not in errors.read_text()
        saved = checkpoints.load(checkpoints.steps(run / "checkpoints")[-1]).step
        assert 0 < saved < 40
    assert in_process(train_to_the_end, arguments) == 0
    assert contents(run) == expected


def test_a_finished_run_is_left_alone(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    assert command(["--config", str(finished_run / "config.yaml")]) == 0
    assert "is complete at step 4" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    run: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "checkpoints" / "step-00000004" / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert command(again(run)) == 0
    errors = capsys.readouterr().err
    assert "step-00000004: generator.safetensors has" in errors
    assert "step-00000002 is used instead." in errors
    assert "from step 2 to 4" in errors
    aside = run / "checkpoints" / "damaged-step-00000004"
    assert (aside / "generator.safetensors").exists()  # set aside, not lost
    shutil.rmtree(aside)
    found, expected = contents(run), contents(finished_run)
    assert found.keys() == expected.keys()
    for name in expected:  # settings name the folder, and manifests have their checksum
        assert found[name] == expected[name] or Path(name).stem in ("config", "checkpoint"), name


def test_only_what_a_save_left_is_removed_beside_checkpoints(run: Path) -> None:
    for name in ("tmp-00000003", "tmp-old-step-00000001", "tmp-backup"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "tmp-00000009").touch()
    assert command(again(run, "training.steps=5")) == 0
    left = sorted(path.name for path in (run / "checkpoints").glob("tmp-*"))
    assert left == ["tmp-00000009", "tmp-backup"], "the folder of somebody, and a file"


@pytest.mark.parametrize("name", ["checkpoint.json", "discriminator.safetensors"])
def test_a_checkpoint_that_cannot_be_read_at_present_is_not_set_aside(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = manifest.read_file

    def stale(path: Path, most: int) -> bytes:
        if path.name == name and path.parent.name == "step-00000004":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "read_file", stale)
        assert command(again(run, "training.steps=5")) == 2
    assert f"{name}: cannot be read (Stale file handle)" in capsys.readouterr().err.splitlines()[-1]
    assert not list((run / "checkpoints").glob("damaged-*"))
    assert command(again(run, "training.steps=5")) == 0
    assert "from step 4 to 5" in capsys.readouterr().err


def test_a_damaged_checkpoint_never_counts_among_those_to_keep(run: Path) -> None:
    (run / "checkpoints" / "step-00000004" / "optimizers.pt").unlink()
    # The next one to be saved, 3, sorts before the damaged one.
    assert command(again(run, "training.steps=3", "checkpoint.every=1", "checkpoint.keep=1")) == 0
    assert [path.name for path in checkpoints.steps(run / "checkpoints")] == ["step-00000003"]
    assert checkpoints.load(run / "checkpoints" / "step-00000003").step == 3
