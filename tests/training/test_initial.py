"""A run that starts from another one: what fits is loaded and recorded, and afterwards the other one is not needed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gan.__main__
import train as program
from gan.models.spectral_norm import SpectralNorm
from gan.runs import checkpoints
from gan.runs.initial_weights import InitialWeights, load_fitting
from gan.utils import cli
from tests.conftest import command
from tests.training.test_resume import contents
from tests.training.test_training import start
from tests.workers import run_together, train_here

Tiny = Callable[..., list[str]]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return checkpoints.load_weights(folder, name)


def first(run: Path) -> Path:
    return run / "checkpoints" / "step-00000000"


def test_a_run_starts_with_the_weights_of_another_and_records_them(
    finished_run: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Another batch size, which a resume refuses.
    assert command(tiny(f"training.initial={finished_run}", "training.steps=1", "training.batch_size=4")) == 0
    run, source = tmp_path / "runs" / "tiny", finished_run / "checkpoints" / "step-00000004"
    for name in ("generator", "discriminator", "ema"):
        mine, theirs = weights(first(run), name), weights(source, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    record = json.loads((run / "initial.json").read_text())
    manifest = json.loads((source / "checkpoint.json").read_text())["files"]
    assert (record["folder"], record["step"]) == (str(source), 4)
    for name, entry in record["networks"].items():
        assert (entry["from"], entry["left"]) == (name, [])
        assert entry["sha256"] == manifest[f"{name}.safetensors"]["sha256"]
    shown = capsys.readouterr().err
    assert f"starts with the weights of {source}, step 4; generator: 26 of 26 tensors" in shown
    assert (run / "samples" / "step-00000000.png").read_bytes() == (finished_run / "samples" / "step-00000004.png").read_bytes()


def test_what_does_not_fit_is_left_and_named(
    finished_run: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["training.steps=1", "model.discriminator.channels=6", "run.name=plain"]
    assert command(tiny(*settings, "checkpoint.every=1")) == 0
    export = tmp_path / "exported"
    assert cli.run(lambda: gan.__main__.main(["export", str(finished_run), "--out", str(export)])) == 0
    capsys.readouterr()
    assert command(tiny(*settings[:2], f"training.initial={export}")) == 0
    shown = capsys.readouterr().err
    assert "generator: 26 of 26 tensors of its ema" in shown, "an export holds one generator"
    assert "discriminator: 0 of" in shown
    run = tmp_path / "runs" / "tiny"
    found = json.loads((run / "initial.json").read_text())["networks"]["discriminator"]
    assert (found["from"], found["sha256"], found["loaded"]) == (None, None, [])
    assert set(found["left"]) == set(weights(first(run), "discriminator"))

    # Of a run whose D has other widths: the last bias has the same shape, and no buffer comes without its weight.
    shutil.rmtree(run)
    assert command(tiny("training.steps=1", f"training.initial={tmp_path / 'runs' / 'plain'}")) == 0
    found = json.loads((run / "initial.json").read_text())["networks"]["discriminator"]
    assert found["loaded"] == ["layers.15.layer.bias"]
    plain = tmp_path / "runs" / "plain" / "checkpoints" / "step-00000001"
    mine, theirs = weights(first(run), "discriminator"), weights(plain, "discriminator")
    assert torch.equal(mine["layers.15.layer.bias"], theirs["layers.15.layer.bias"])
    assert mine["layers.0.v"].shape == theirs["layers.0.v"].shape
    assert not torch.equal(mine["layers.0.v"], theirs["layers.0.v"])


def test_it_resumes_bit_for_bit_without_the_run_that_it_started_from(finished_run: Path, tiny: Tiny, tmp_path: Path) -> None:
    other, run = tmp_path / "other", tmp_path / "runs" / "tiny"
    shutil.copytree(finished_run, other)
    settings = tiny("checkpoint.every=2", "checkpoint.keep=1", "samples.every=2", f"training.initial={other}")
    assert command([*settings, "training.steps=4"]) == 0
    expected = contents(run)
    shutil.rmtree(run)
    assert command([*settings, "training.steps=2", "checkpoint.keep=2"]) == 0
    shutil.rmtree(run / "checkpoints" / "step-00000002")  # as if killed before: only the weights it began with are saved
    shutil.rmtree(other)
    assert command([*settings, "training.steps=4"]) == 0
    assert contents(run) == expected


@pytest.mark.slow
def test_two_processes_start_with_the_weights_of_the_other_run(finished_run: Path, tiny: Tiny, tmp_path: Path) -> None:
    run_together(2, train_here, tiny(f"training.initial={finished_run}", "training.steps=1"))
    for name in ("generator", "discriminator", "ema"):
        mine = weights(first(tmp_path / "runs" / "tiny"), name)
        theirs = weights(finished_run / "checkpoints" / "step-00000004", name)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("initial", "settings", "expected"),
    [
        ("nowhere", [], "neither a run that has saved a checkpoint, nor a checkpoint or an export"),
        ("damaged", [], "no usable checkpoint left"),
        ("classifier", [], "holds no network of a GAN"),
        (
            "run",
            ["model.latent_dim=9", "model.generator.channels=3", "model.generator.norm=none", "data.channels=3"],
            "no weight has",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    initial: str, settings: list[str], expected: str, run: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "damaged")
    for file in (tmp_path / "damaged").rglob("generator.safetensors"):
        file.write_bytes(b"")
    checkpoints.write_weights(tmp_path / "classifier", 3, {"classifier": {"w": torch.ones(2)}}, "")
    if settings:
        shutil.rmtree(run / "checkpoints" / "step-00000002")
        only = run / "checkpoints" / "step-00000004"
        saved = weights(only, "generator")
        shutil.rmtree(only)
        checkpoints.write_weights(only, 4, {"generator": {f"other.{key}": value for key, value in saved.items()}}, "")
    assert command(tiny(*settings, f"training.initial={tmp_path / initial}", "training.steps=1")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: training.initial={tmp_path / initial}")
    assert expected in line
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_dry_run_names_the_weights_and_the_other_run_may_not_change_later(
    run: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(lambda: program.main([*tiny(f"training.initial={run}"), "--dry-run"])) == 0
    assert f"starts with:    weights of {run / 'checkpoints' / 'step-00000004'}" in capsys.readouterr().out
    assert command(tiny("training.steps=1")) == 0
    assert command(tiny("training.steps=2", f"training.initial={run}")) == 2
    assert "training.initial: None ->" in capsys.readouterr().err


def test_sn_starts_as_the_msn_network_is_in_evaluation_mode() -> None:
    states = {}
    for norm in ("mean_spectral", "spectral"):
        states[norm], stream, _ = start(f"model.discriminator.norm={norm}", f"seed={len(states)}")
    msn, sn = (states[norm].discriminator for norm in ("mean_spectral", "spectral"))
    images = stream.batch(0).double()
    for _ in range(50):
        msn(images)  # running means
    initial = InitialWeights(Path("msn"), 7, {"discriminator": msn.state_dict()})
    record = load_fitting({"discriminator": sn}, initial)
    assert record["networks"]["discriminator"]["left"] == []
    expected = msn.eval()(images)
    assert torch.allclose(sn(images), expected, rtol=1e-9)
    assert expected.std() > 0

    # A layer with a gain is not an SN layer with another bias.
    with_gain = start("model.discriminator.norm=mean_spectral", "model.discriminator.gain=true")[0].discriminator
    sn = start("model.discriminator.norm=spectral")[0].discriminator
    for _ in range(5):
        with_gain(images)
    load_fitting({"discriminator": sn}, InitialWeights(Path("msn"), 7, {"discriminator": with_gain.state_dict()}))
    assert torch.equal(sn.layers[0].layer.bias, with_gain.layers[0].layer.bias)
    assert not torch.allclose(with_gain.layers[0].m, with_gain.layers[0].running_mean)


@pytest.mark.parametrize("source", ["spectral", "mean_spectral"])
@pytest.mark.parametrize("gain", [False, True])
def test_loaded_weights_have_their_own_largest_singular_value(source: str, gain: bool) -> None:
    trained = start(f"model.discriminator.norm={source}", "seed=1")[0].discriminator
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(20)  # the vectors of other weights would be far off
    network = start("model.discriminator.norm=mean_spectral", f"model.discriminator.gain={str(gain).lower()}")[0].discriminator
    load_fitting({"discriminator": network}, InitialWeights(Path("trained"), 7, {"discriminator": trained.state_dict()}))
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            weight = layer.weight().detach().flatten(1)
            assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.1)
