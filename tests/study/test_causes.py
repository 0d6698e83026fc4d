"""The two parts of the released projection, each alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gan.models.spectral_norm import SpectralNorm
from gan.utils import cli
from gan.utils.distributed import make_accelerator
from study.causes import ConstantTask, OverwrittenTask, main
from study.classifier_task import ClassifierTask
from study.config import load_study_config
from study.data import training_images
from study.results import comparable_runs, read_runs
from tests.study.common import DIGITS, TINY, study


def after(task: type[ClassifierTask], tmp_path: Path, steps: int, norm: str = "spectral") -> Any:
    """Return a task of this class after some ``steps``."""
    settings = [*TINY, f"run.dir={tmp_path}", f"run.name={task.__name__}", f"model.norm={norm}"]
    config = load_study_config(DIGITS, settings)
    made = task(config, training_images(config.data), make_accelerator("cpu"))
    for number in range(steps):
        made.prepare(number, lambda: False)
        made.step(number)
    made.close()
    return made


def layers(task: ClassifierTask) -> list[SpectralNorm]:
    return [module for module in task.network.modules() if isinstance(module, SpectralNorm)]


def cosine(one: SpectralNorm, two: SpectralNorm) -> float:
    """Return the cosine of the angle between the last gradients of two layers."""
    assert one.layer.weight.grad is not None and two.layer.weight.grad is not None
    pair = one.layer.weight.grad.flatten(), two.layer.weight.grad.flatten()
    return float(torch.nn.functional.cosine_similarity(*pair, dim=0))


def test_overwriting_leaves_the_function_and_the_direction_of_the_first_gradient(tmp_path: Path) -> None:
    plain, overwritten = (after(task, tmp_path, 1) for task in (ClassifierTask, OverwrittenTask))
    for own, other in zip(layers(plain), layers(overwritten), strict=True):
        assert cosine(own, other) == pytest.approx(1, abs=1e-4)
        assert float(torch.linalg.matrix_norm(other.layer.weight.flatten(1), 2)) == pytest.approx(1, abs=0.2)


def test_a_constant_sigma_gives_the_gradient_of_the_projection(tmp_path: Path) -> None:
    constant, projected = after(ConstantTask, tmp_path, 1), after(ClassifierTask, tmp_path, 1, "spectral_projected")
    for own, other in zip(layers(constant), layers(projected), strict=True):
        assert cosine(own, other) == pytest.approx(1, abs=0.02)  # sigma itself: exact, or after some power iterations
        assert float(torch.linalg.matrix_norm(other.layer.weight.flatten(1), 2)) == pytest.approx(1, abs=0.2)
    assert float(torch.linalg.matrix_norm(layers(constant)[-1].layer.weight.flatten(1), 2)) < 0.9  # not overwritten


def test_a_part_trains_as_a_run_of_its_own_and_refuses_other_norms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["overwritten", "--config", str(DIGITS), *TINY, f"run.dir={tmp_path}", "run.name=part"]
    assert cli.run(lambda: main([*words, "model.norm=batch"])) == 2
    assert "model.norm=batch: the parts are of the paper's SN" in capsys.readouterr().err
    assert cli.run(lambda: main([*words, "model.norm=spectral"])) == 0
    assert "of the test images after 0.4 epochs" in capsys.readouterr().out
    part = tmp_path / "overwritten" / "part"
    assert (part / "config.yaml").exists(), "apart from runs with the same settings"
    ordinary = [*TINY, "model.norm=spectral"]
    assert study("train", "--config", str(DIGITS), *ordinary, f"run.dir={tmp_path}", "run.name=plain") == 0
    groups = comparable_runs(read_runs([part, tmp_path / "plain"]))
    assert [group.settings["part"] for group in groups] == ["none", "overwritten"], "two trainings, not one twice"
    capsys.readouterr()
    longer = ["training.epochs=0.6", f"run.dir={tmp_path / 'overwritten'}", "run.name=part"]
    assert study("train", "--config", str(DIGITS), *ordinary, *longer) == 2
    assert "a run of python -m study.causes overwritten" in capsys.readouterr().err
