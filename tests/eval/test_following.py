"""Scores of every generator that a run has kept: milestones, checkpoints, and those that appear while the run trains."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eval.__main__ import main
from eval.following import follow_generators, kept_generators
from gan import load_generator
from gan.inference.generator import TrainedGenerator
from gan.runs import scores
from gan.utils import cli
from gan.utils.distributed import make_accelerator
from tests.conftest import command
from tests.small import scale_down

Tiny = Callable[..., list[str]]


def score(*arguments: str | Path) -> int:
    return cli.run(lambda: main(["score", *map(str, arguments), "--protocol", "quick", "--extractor", "efficientnet-lite0"]))


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    """A run of 4 steps that kept milestones of the steps 2 and 4, and the checkpoint of step 4 alone."""
    assert command(tiny("training.steps=4", "checkpoint.every=3", "checkpoint.keep=1", "checkpoint.milestones=2")) == 0
    return tmp_path / "runs" / "tiny"


def test_milestones_are_never_removed_and_are_the_averaged_generator(run: Path) -> None:
    assert sorted(path.name for path in (run / "milestones").iterdir()) == ["step-00000002", "step-00000004"]
    milestone, checkpoint = run / "milestones" / "step-00000004", run / "checkpoints" / "step-00000004"
    assert sorted(path.name for path in milestone.iterdir()) == [
        "checkpoint.json", "checkpoint.sha256", "config.yaml", "ema.safetensors",
    ]  # fmt: skip
    kept, whole = (load_file(folder / "ema.safetensors") for folder in (milestone, checkpoint))
    assert all(torch.equal(kept[key], whole[key]) for key in whole)
    assert load_generator(run / "milestones" / "step-00000002").step == 2


def test_resumed_run_writes_the_same_milestones(run: Path, tiny: Tiny) -> None:
    before = (run / "milestones" / "step-00000004" / "ema.safetensors").read_bytes()
    steps = ["training.steps=4", "checkpoint.every=3", "checkpoint.keep=1"]
    assert command(tiny("training.steps=3", "checkpoint.every=3", name="stopped")) == 0
    stopped = run.parent / "stopped"
    assert command(tiny(*steps, "checkpoint.milestones=2", name="stopped")) == 0  # the setting may change
    assert sorted(path.name for path in (stopped / "milestones").iterdir()) == ["step-00000004"]
    assert (stopped / "milestones" / "step-00000004" / "ema.safetensors").read_bytes() == before


def test_all_scores_what_lacks_a_score_in_the_order_of_steps(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    assert score(run / "checkpoints" / "step-00000004") == 0
    assert score(run, "--all") == 0
    assert [record["step"] for record in scores.read(run)] == [4, 2]  # the record of step 4 was there
    capsys.readouterr()
    assert score(run, "--all") == 0
    assert [record["step"] for record in scores.read(run)] == [4, 2]
    shown = [line for line in capsys.readouterr().out.splitlines() if "at step" in line]
    assert [line.split(" at step ")[1].split(",")[0] for line in shown] == ["2", "4"]


def test_follow_scores_what_a_training_adds_until_its_last_step(run: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    scale_down(monkeypatch)
    text = (run / "config.yaml").read_text()
    assert "steps: 4\n" in text
    (run / "config.yaml").write_text(text.replace("steps: 4\n", "steps: 6\n"))
    waits = []

    def train_on(seconds: float) -> None:
        waits.append(seconds)
        assert command(tiny("training.steps=6", "checkpoint.every=3", "checkpoint.keep=1", "checkpoint.milestones=2")) == 0

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", train_on)
        assert score(run, "--follow") == 0
    assert len(waits) == 1
    assert [record["step"] for record in scores.read(run)] == [2, 4, 6]


def test_followed_runs_take_turns_and_one_that_has_diverged_is_not_waited_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "runs" / "other"))
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("steps: 4\n", "steps: 9\n"))
    (other / "diverged.json").write_text("{}")
    found = follow_generators([run, other], make_accelerator("cpu"), None, wait=True)
    assert [(path.name, folder.name[-1]) for path, folder in found] == [
        ("tiny", "2"),
        ("other", "2"),
        ("tiny", "4"),
        ("other", "4"),
    ]
    found = follow_generators([run, other], make_accelerator("cpu"), None, wait=False)
    assert [path.name for path, _ in found] == ["tiny", "tiny", "other", "other"]


def test_a_checkpoint_is_not_a_run_whose_checkpoints_could_be_scored(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(run / "checkpoints" / "step-00000004", "--all") == 2
    assert "not a run's folder" in capsys.readouterr().err


def test_a_copy_beside_the_checkpoints_is_left_out(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00000004", run / "checkpoints" / "step-00000004.bak")
    assert sorted(kept_generators(run)) == [2, 4]


def test_all_takes_the_checkpoint_where_the_milestone_lacks_the_weights_asked_for(run: Path) -> None:
    kept = kept_generators(run, "raw")
    assert kept == {2: run / "milestones" / "step-00000002", 4: run / "checkpoints" / "step-00000004"}


def test_all_scores_what_it_can_and_tells_what_it_cannot_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    (run / "milestones" / "step-00000002" / "ema.safetensors").write_bytes(b"damaged")
    assert score(run, "--all") == 2
    assert [record["step"] for record in scores.read(run)] == [4]
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: generators that could not be read, and have no score: 1")


def test_all_needs_no_checkpoint_that_the_training_removes_meanwhile(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale_down(monkeypatch)

    def removed(folder: Path, *arguments: Any) -> TrainedGenerator:
        if folder.name == "step-00000002":
            shutil.rmtree(folder)
        return load_generator(folder, *arguments)

    monkeypatch.setattr("eval.commands.load_generator", removed)
    assert score(run, "--all") == 0
    assert [record["step"] for record in scores.read(run)] == [4]


def test_a_score_that_could_not_be_written_is_told_before_the_extraction(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    assert score(run) == 0
    (run / scores.FILE).unlink()
    (run / ".scores.lock").unlink()
    (run / ".scores.lock").symlink_to("elsewhere")
    monkeypatch.setattr("eval.scoring.GeneratedImages.read", None)
    capsys.readouterr()
    assert score(run) == 2
    assert ".scores.lock: a link" in capsys.readouterr().err
