"""Classifier runs: records, accuracy, exact resume and several processes."""

import signal
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan.utils.errors import UserError
from gan.utils.settings import set_value
from study.classifier_task import ClassifierTask, step_after
from study.config import StudyConfig, load_study_config
from study.data import LabelledDataset
from study.results import read_run
from tests.study.common import DIGITS, TINY, contents, study, train
from tests.workers import in_process, run_together, study_here, study_to_the_end


def test_a_run_records_tests_probes_and_checkpoints(finished: Path) -> None:
    result = read_run(finished)
    assert result.complete
    assert [test["epoch"] for test in result.tests] == [0.4]
    assert 0 <= result.accuracy <= 1
    assert result.layers == [1, 2, 3, 4]
    assert [record["step"] for record in result.probed(2)] == [1, 3, 6, 8]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


@pytest.mark.slow
def test_a_classifier_learns_the_digits(tmp_path: Path) -> None:
    run = train(tmp_path, "training.epochs=3", "data.test_images=null", "data.train_images=null", "probes.every=0")
    assert read_run(run).accuracy > 0.9
    assert len(read_run(run).tests) == 3
    assert not (run / "probes.jsonl").exists()


@pytest.mark.slow
def test_a_killed_run_resumes_bit_exactly(tmp_path: Path) -> None:
    settings = [*TINY, "training.epochs=2", "checkpoint.every=1", "model.norm=mean_spectral", f"run.dir={tmp_path}"]
    words = ["train", "--config", str(DIGITS), *settings]
    # In a process like the killed ones: another number of threads changes the last bit of sums.
    assert in_process(study_to_the_end, [*words, "run.name=calm"]) == 0
    saved = tmp_path / "killed" / "checkpoints"
    codes = [
        in_process(study_to_the_end, [*words, "run.name=killed"], kill_when=(saved / f"step-{step:08d}").exists)
        for step in (3, 25)
    ]
    assert in_process(study_to_the_end, [*words, "run.name=killed"]) == 0
    assert codes == [-signal.SIGKILL] * 2
    calm, killed = contents(tmp_path / "calm"), contents(tmp_path / "killed")
    assert killed["probes.jsonl"] == calm["probes.jsonl"]
    assert killed["metrics"] == calm["metrics"]
    weights = "checkpoints/step-00000040/classifier.safetensors"
    assert killed[weights] == calm[weights]


@pytest.mark.slow
def test_a_damaged_test_image_ends_a_streamed_run_with_its_steps_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["training.epochs=2", "checkpoint.every=1000", "data.memory_gb=0"]
    calm = contents(train(tmp_path, *settings, name="calm"))
    words = ["train", "--config", str(DIGITS), *TINY, f"run.dir={tmp_path}", "run.name=damaged", *settings]

    def damaged(self: ClassifierTask, chosen: range) -> None:
        raise UserError("test/3.png: a damaged image.")

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTask, "_test_batch", damaged)
        assert study(*words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: test/3.png: a damaged image. The run is saved up to step 20; the same command resumes from there"
    assert study(*words) == 0
    found = contents(tmp_path / "damaged")
    assert found["metrics"] == calm["metrics"]
    assert found["probes.jsonl"] == calm["probes.jsonl"]


@pytest.mark.slow
def test_a_run_extended_by_an_epoch_equals_one_run_of_both(tmp_path: Path) -> None:
    once = contents(train(tmp_path, "training.epochs=2", name="once"))
    train(tmp_path, "training.epochs=1", name="twice")
    twice = contents(train(tmp_path, "training.epochs=2", name="twice"))
    weights = "checkpoints/step-00000040/classifier.safetensors"
    assert once[weights] == twice[weights]
    assert [m for m in once["metrics"] if "test_accuracy" in m] == [m for m in twice["metrics"] if "test_accuracy" in m]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    settings = [*TINY, "training.precision=fp64", "model.norm=mean_spectral", f"run.dir={tmp_path}", "probes.every=8"]
    words = ["train", "--config", str(DIGITS), *settings]
    run_together(1, study_here, [*words, "run.name=one"])
    run_together(2, study_here, [*words, "run.name=two"])
    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    assert len(one.metrics) == len(two.metrics)
    for a, b in zip(one.metrics, two.metrics, strict=True):
        keys = {"loss", "accuracy", "test_loss", "test_accuracy"} & a.keys()
        assert all(abs(a[key] - b[key]) < 1e-8 for key in keys)
    for a, b in zip(one.probes, two.probes, strict=True):
        for key in ("gradient_std", "weight_mean", "preactivation_mean", "singular_max"):
            assert abs(a[key] - b[key]) < 1e-6 * (abs(a[key]) + 1e-3), key


def test_a_fraction_of_an_epoch_is_taken_as_it_is_written() -> None:
    config = load_study_config(DIGITS, ["training.batch_size=50"])
    images = cast(LabelledDataset, range(50_000))
    assert [step_after(epochs, config, images) for epochs in (1.1, 2.2, 3, 0.0001)] == [1100, 2200, 3000, 1]


@pytest.mark.parametrize("option", ["--dry-run", "training.epochs=1"])
def test_a_mean_of_other_channels_is_refused_before_anything_is_written(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]", f"run.dir={tmp_path / 'runs'}", option]
    assert study("train", "--config", str(DIGITS), *words) == 2
    assert "3 numbers, but the images have 1 channels" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_weights_beyond_all_numbers_are_a_diverged_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "model.norm=spectral", "optimizer.lr=1e38", "probes.every=1", f"run.dir={tmp_path}", "run.name=run"]
    assert study("train", "--config", str(DIGITS), *words) == 1
    assert "not finite" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "run" / "failed.json").exists()


@given(st.integers(1, 500), st.integers(1, 64), st.floats(0.1, 5))
def test_the_last_step_is_the_first_after_all_epochs(count: int, batch: int, epochs: float) -> None:
    config = set_value(StudyConfig(), "training.batch_size", batch)
    step = step_after(epochs, config, [None] * count)  # type: ignore[arg-type]
    assert step * batch >= epochs * count > (step - 1) * batch
