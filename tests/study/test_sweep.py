"""Sweeps of classifiers: their grid, resume, diverged runs and damaged runs. tests/launch has what they share with GANs."""

import shutil
from pathlib import Path

import pytest

from gan.utils.errors import UserError
from study.results import read_run
from study.sweep import plan_classifiers, readable
from study.tables import accuracy_table
from tests.study.common import DIGITS, TINY, contents, study, train

SWEEP = ["--config", str(DIGITS), "--norms", "batch", "mean_spectral", "--rates", "0.001", "--seeds", "0", "1"]


def test_a_sweep_goes_through_every_combination_of_its_grid() -> None:
    planned = plan_classifiers([DIGITS], ["batch", "spectral"], [0.1, 1e-4], [0, 7], ["training.epochs=3"])
    configs = [run.config for run in planned]
    runs = [(c.model.norm, c.optimizer.lr, c.seed, c.training.epochs) for c in configs]
    for changed in (["run.name=x"], ["model.norm=none"], ["seed=3"], ["optimizer.lr=1"]):
        with pytest.raises(UserError, match=r"sets model\.norm"):
            plan_classifiers([DIGITS], ["batch"], [0.1], [0], changed)
    with pytest.raises(UserError, match="2 runs of the sweep"):
        plan_classifiers([DIGITS], ["batch"], [0.1], [0, 0], [])
    assert len(set(runs)) == len({c.run.name for c in configs}) == 8
    assert ("spectral", 1e-4, 7, 3.0) in runs


@pytest.mark.slow
def test_a_sweep_resumes_a_run_killed_between_its_last_test_and_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--config", str(DIGITS), "--norms", "spectral", "--rates", "0.001"]
    words = ["sweep", *grid, *TINY, f"run.dir={tmp_path}"]
    assert study(*words) == 0
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    calm = contents(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "checkpoints" / "tmp-00000008").mkdir()
    capsys.readouterr()
    assert study(*words) == 0
    assert "(done)" not in capsys.readouterr().err
    assert contents(run) == calm


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_diverges_only_in_the_test_is_reported_as_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--config", str(DIGITS), "--norms", "none", "--rates", "1e12", *TINY, "training.epochs=0.05"]
    words += [f"run.dir={tmp_path}", "probes.every=0"]
    assert study(*words) == 0
    captured = capsys.readouterr()
    assert "the loss on the test images is not finite" in captured.err
    assert "1 diverged" in captured.out
    assert study(*words) == 0
    assert "(failed before: the loss on the test images is not finite" in capsys.readouterr().err
    assert study(*words, "--retry") == 0
    assert "failed before" not in capsys.readouterr().err
    assert (tmp_path / "digits_cnn3_none_lr1e+12_seed0.log").read_text().count("from step 0") == 2
    assert study(*words, "--status") == 0
    output = capsys.readouterr().out
    assert "diverged  step 1 of 1" in output
    assert "the loss on the test images is not finite" in output


@pytest.mark.slow
def test_two_configurations_of_one_training_have_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [train(tmp_path, "training.epochs=0.1", name=name) for name in ("one", "two")]
    found = readable([*runs, tmp_path / "missing"])
    assert [run.folder for run in found] == runs[:1]
    assert "are the same training" in caplog.text
    assert "| MSN |" in accuracy_table(found)


def test_a_mistake_in_one_configuration_is_reported_before_anything_is_trained(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {name: vgg7, variant: published}\n")
    runs = tmp_path / "runs"
    assert study("sweep", "--config", str(DIGITS), str(bad), "--rates", "0.001", *TINY, f"run.dir={runs}") == 2
    assert not runs.exists()
