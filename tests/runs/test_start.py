"""A run without a step may be started with other settings; one with a step may not."""

import shlex
import shutil
from pathlib import Path

import pytest

from gan.runs import checkpoints
from gan.runs.checkpoints import Checkpoint
from gan.runs.folder import METRICS
from gan.utils.files import write_atomically
from tests.conftest import TINY, command


def test_a_run_without_a_step_may_be_started_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"run.dir={tmp_path}", "run.name=a", "training.steps=2"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gan.training.gan_task.GanTask.step", killed)
        assert command([*words, "model.latent_dim=4"]) == 130
    assert (tmp_path / "a" / "config.yaml").exists()
    assert command([*words, "model.latent_dim=6"]) == 0
    assert "latent_dim: 6" in (tmp_path / "a" / "config.yaml").read_text()
    assert (tmp_path / "a" / METRICS).read_text().count('"d_loss"') == 2
    capsys.readouterr()
    assert command([*words, "model.latent_dim=4"]) == 2
    error = capsys.readouterr().err.strip()
    assert "holds a run with other settings (model.latent_dim: 6 -> 4)" in error
    named = shlex.split(error.rpartition("with its own settings: ")[2].removesuffix("."))
    assert command([*named, "training.steps=3"]) == 0
    assert (tmp_path / "a" / METRICS).read_text().count('"d_loss"') == 3


def test_a_kill_within_the_start_from_initial_weights_leaves_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    words = [*TINY, f"run.dir={tmp_path}", "run.name=a", "training.steps=1", f"training.initial={finished_run}"]
    written: list[str] = []

    def killed(path: Path, content: bytes) -> None:
        if written and path.parent == tmp_path / "a":
            raise KeyboardInterrupt
        write_atomically(path, content)
        written.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr("gan.runs.folder.write_atomically", killed)
        assert command(words) == 130
    assert written == ["config.yaml"]
    assert command(words) == 0
    assert (tmp_path / "a" / "initial.json").exists()


def test_a_run_that_another_process_has_started_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    words = [*TINY, f"run.dir={tmp_path}", "run.name=a", "training.steps=1", "seed=5"]

    def start_other(*_: object) -> None:
        shutil.copytree(finished_run, tmp_path / "a")

    with monkeypatch.context() as patch:
        patch.setattr("gan.training.loop._restore", start_other)
        assert command(words) == 2
    assert "another process has started a run in it meanwhile" in capsys.readouterr().err
    for name in ("config.yaml", METRICS, "environment.json"):
        assert (tmp_path / "a" / name).read_bytes() == (finished_run / name).read_bytes()


@pytest.mark.parametrize("keep", [2, 3])
def test_checkpoints_are_ordered_by_their_step_and_other_folders_are_left_alone(tmp_path: Path, keep: int) -> None:
    (tmp_path / "step-00000012.bak").mkdir()
    for step in (99_999_000, 99_999_999, 100_000_000):
        checkpoints.save(tmp_path, Checkpoint(step, {}, {}, "", ""), keep=keep)
    names = ["step-99999000", "step-99999999", "step-100000000"][-keep:]
    assert [path.name for path in checkpoints.steps(tmp_path)] == names
    assert (tmp_path / "step-00000012.bak").is_dir()
