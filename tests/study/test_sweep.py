"""Sweeps: their grid, resume, failed runs and damaged runs."""

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan.utils.errors import UserError
from study.classifier_task import ClassifierTask
from study.results import read_run
from study.sweep import sweep_configs
from tests.study.common import DIGITS, TINY, contents, study
from tests.workers import run_together, study_here

SWEEP = ["--config", str(DIGITS), "--norms", "batch", "mean_spectral", "--rates", "0.001", "--seeds", "0", "1"]


def test_a_sweep_goes_through_every_combination_of_its_grid() -> None:
    configs = sweep_configs([DIGITS], ["batch", "spectral"], [0.1, 1e-4], [0, 7], ["training.epochs=3"])
    runs = [(c.model.norm, c.optimizer.lr, c.seed, c.training.epochs) for c in configs]
    for changed in (["run.name=x"], ["model.norm=none"], ["seed=3"], ["optimizer.lr=1"]):
        with pytest.raises(UserError, match=r"sets model\.norm"):
            sweep_configs([DIGITS], ["batch"], [0.1], [0], changed)
    with pytest.raises(UserError, match="2 runs of the sweep"):
        sweep_configs([DIGITS], ["batch"], [0.1], [0, 0], [])
    assert len(set(runs)) == len({c.run.name for c in configs}) == 8
    assert ("spectral", 1e-4, 7, 3.0) in runs


@pytest.mark.slow
def test_a_sweep_resumes_a_run_killed_between_its_last_test_and_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--config", str(DIGITS), "--norms", "spectral", "--rates", "0.001"]
    words = ["sweep", *grid, *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 0
    (run,) = tmp_path.iterdir()
    calm = contents(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "checkpoints" / "tmp-00000008").mkdir()
    capsys.readouterr()
    assert study(*words) == 0
    assert "(done)" not in capsys.readouterr().err
    assert contents(run) == calm


@pytest.mark.slow
def test_a_failed_run_is_reported_and_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ClassifierTask.step

    def breaking(self: ClassifierTask, number: int) -> Any:
        metrics = whole(self, number)
        if self.config.model.norm == "batch" and self.config.seed == 0 and number == 5:
            raise RuntimeError("a bug")
        if self.config.model.norm == "batch" and self.config.seed == 1:
            metrics["loss"] = metrics["loss"] * float("nan")
        return metrics

    monkeypatch.setattr(ClassifierTask, "step", breaking)
    words = ["sweep", *SWEEP, *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 1
    captured = capsys.readouterr()
    assert "failed, the sweep continues: RuntimeError: a bug" in captured.err
    assert "not finite since step 1" in captured.err
    assert "1 diverged, 1 unfinished" in captured.out
    assert all(read_run(tmp_path / f"digits_cnn3_mean_spectral_lr0.001_seed{seed}").complete for seed in (0, 1))
    monkeypatch.setattr(ClassifierTask, "step", whole)
    assert study(*words) == 0  # the failed run resumes; the diverged one is not repeated
    captured = capsys.readouterr()
    assert "failed before: losses or gradients are not finite" in captured.err
    assert "1 diverged" in captured.out
    assert study(*words, "--retry") == 0
    assert "diverged" not in capsys.readouterr().out


def test_a_run_with_other_settings_is_not_skipped_as_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--config", str(DIGITS), "--norms", "batch", "--rates", "0.001", *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 0
    assert study(*words, "training.batch_size=40") == 2
    assert "holds a run with other settings (training.batch_size: 20 -> 40)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_run_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", *SWEEP[:-1], *TINY, f"run.dir={tmp_path}"]
    assert study(*words, "--norms", "batch") == 0
    damaged = tmp_path / "digits_cnn3_batch_lr0.001_seed0"
    (damaged / "metrics.jsonl").write_text("{\n")
    assert study(*words) == 2
    captured = capsys.readouterr()
    assert "batch_lr0.001_seed0 failed, the sweep continues" in captured.err
    assert "| MSN |" in captured.out
    assert read_run(tmp_path / "digits_cnn3_mean_spectral_lr0.001_seed0").complete


def test_a_run_that_diverges_only_in_the_test_is_reported_as_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--config", str(DIGITS), "--norms", "none", "--rates", "1e12", *TINY, "training.epochs=0.05"]
    assert study(*words, f"run.dir={tmp_path}", "probes.every=0") == 0
    captured = capsys.readouterr()
    assert "not finite" in captured.err
    assert "1 diverged" in captured.out


@pytest.mark.slow
def test_a_mistake_on_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    for index in range(40):
        folder = tmp_path / "images" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), index).save(folder / f"{index}.png")
    (tmp_path / "images" / "1" / "7.png").write_text("no image")
    words = ["sweep", "--config", str(DIGITS), "--norms", "batch", "--rates", "0.001", *TINY, f"run.dir={tmp_path / 'runs'}",
        "data.name=folder", f"data.path={tmp_path / 'images'}", "data.memory_gb=0", "training.epochs=5"]  # fmt: skip
    with pytest.raises(AssertionError):
        run_together(2, study_here, words)  # waits at most five minutes for the processes
    assert not multiprocessing.active_children()


def test_a_mistake_in_one_configuration_is_reported_before_anything_is_trained(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {name: vgg7, variant: published}\n")
    runs = tmp_path / "runs"
    assert study("sweep", "--config", str(DIGITS), str(bad), "--rates", "0.001", *TINY, f"run.dir={runs}") == 2
    assert not runs.exists()
