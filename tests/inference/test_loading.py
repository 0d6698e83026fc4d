"""Which generator is loaded, and what a caller in Python is told."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import eval.__main__
import gan.__main__
from gan import load_generator
from gan.inference import generator
from gan.runs import checkpoints
from gan.utils import cli
from gan.utils.errors import UserError
from tests.small import scale_down


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run with steps 2 and 4, and step 2 as its best."""
    shutil.copytree(finished_run, tmp_path / "run")
    old = load_generator(finished_run, checkpoint=2)
    weights = {"ema": checkpoints.load_weights(old.folder, "ema")}
    (tmp_path / "run" / "best").mkdir()
    checkpoints.write_weights(tmp_path / "run" / "best", 2, weights, (old.folder / "config.yaml").read_text())
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("checkpoint", "step", "folder"), [("newest", 4, "step-00000004"), ("best", 2, "best"), (2, 2, "step-00000002")]
)
def test_the_checkpoint_that_is_asked_for_is_taken_and_named(
    checkpoint: str | int, step: int, folder: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    generator = load_generator(run, checkpoint=checkpoint)
    assert (generator.step, generator.folder.name) == (step, folder)
    scale_down(monkeypatch)
    out = str(tmp_path / "a.png")
    assert cli.run(lambda: gan.__main__.main(["sample", str(run), "--out", out, "--checkpoint", str(checkpoint)])) == 0
    assert f"{generator.folder}: step {step}, ema weights" in capsys.readouterr().err
    score = ["score", str(run), "--protocol", "quick", "--extractor", "efficientnet-lite0", "--checkpoint", str(checkpoint)]
    assert cli.run(lambda: eval.__main__.main(score)) == 0
    assert f"{generator.folder}: step {step}, ema weights" in capsys.readouterr().err


def test_weights_and_device_are_spelled_alike_in_sampling_and_scoring(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    common = ["--weights", "raw", "--device", "cpu"]
    score = ["score", str(run), "--protocol", "quick", "--extractor", "efficientnet-lite0", *common]
    for program, words in (
        (gan.__main__.main, ["sample", str(run), "--out", str(tmp_path / "a.png"), *common]),
        (eval.__main__.main, score),
    ):
        assert cli.run(lambda program=program, words=words: program(words)) == 0
        assert "step 4, raw weights" in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint", ["3", "oldest", "-2", "", "step-00000002"])
def test_a_checkpoint_that_is_not_kept_is_refused_with_those_that_are(checkpoint: str, run: Path) -> None:
    with pytest.raises(UserError, match=r"expected best, newest or a step that .* keeps \(2, 4\)\."):
        load_generator(run, checkpoint=checkpoint)


def test_a_best_checkpoint_is_refused_where_there_is_none(finished_run: Path) -> None:
    with pytest.raises(UserError, match=r"has no best checkpoint.*Kept: 2, 4\."):
        load_generator(finished_run, checkpoint="best")
    with pytest.raises(UserError, match="is one checkpoint"):
        load_generator(finished_run / "checkpoints" / "step-00000002", checkpoint=2)


@pytest.mark.parametrize(
    "arguments", [{"seed": -1}, {"seed": 1.5}, {"seed": "1"}, {"seed": 2**63}, {"count": 1.5}, {"start": 0.5}]
)
def test_numbers_that_are_none_are_refused_in_words(arguments: dict, finished_run: Path) -> None:
    (name,) = arguments
    with pytest.raises(UserError, match=rf"^{name}=.*: expected a whole number from \d up\.$"):
        load_generator(finished_run).sample(**{"count": 1, **arguments})


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", torch.device("meta")])
def test_a_device_that_is_not_here_is_refused_in_words(device: str | torch.device, finished_run: Path) -> None:
    with pytest.raises(UserError, match="not a device of this machine"):
        load_generator(finished_run, device=device)


def test_latents_of_another_shape_are_refused_in_words(finished_run: Path) -> None:
    generator = load_generator(finished_run)
    assert generator.render(torch.zeros(3, 8)).shape == (3, 1, 32, 32)
    for shape in ((8,), (2, 7), (0, 8), (1, 8, 1, 1)):
        with pytest.raises(UserError, match=r"expected \(N, 8\)\.$"):
            generator.render(torch.zeros(shape))


def test_a_generator_is_shown_in_one_short_line(finished_run: Path) -> None:
    shown = repr(load_generator(finished_run))
    assert shown == f"TrainedGenerator('{finished_run}/checkpoints/step-00000004', step 4, ema, 1x32x32, cpu)"


def test_a_checkpoint_that_training_replaces_while_it_is_read_is_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = checkpoints.load_weights(run / "checkpoints" / "step-00000004", "ema")
    config = (run / "config.yaml").read_text()
    build, replaced = generator.build_generator, []

    def replacing(*arguments: Any, **options: Any) -> Any:
        if not replaced:
            replaced.append(True)
            checkpoints.replace_weights(run / "best", 4, {"ema": newer}, config)
        return build(*arguments, **options)

    monkeypatch.setattr(generator, "build_generator", replacing)
    found = load_generator(run, checkpoint="best")
    assert found.step == 4
    assert all(torch.equal(found.network.state_dict()[key], newer[key]) for key in newer)


def test_a_checkpoint_that_training_removes_while_it_is_read_costs_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, build = run / "checkpoints" / "step-00000002", generator.build_generator

    def removing(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        return build(*arguments, **options)

    monkeypatch.setattr(generator, "build_generator", removing)
    with pytest.raises(UserError, match="step-00000002"):
        load_generator(folder)


def test_a_checkpoint_whose_settings_were_changed_is_not_loaded(run: Path) -> None:
    config = run / "best" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0\n", "seed: 3\n"))
    with pytest.raises(UserError, match=r"config\.yaml has been changed or damaged"):
        load_generator(run / "best")
