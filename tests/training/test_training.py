"""What one step does, and how the loop ends."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.steps import prepare
from gan.config import GanConfig, load_config
from gan.data.datasets import load_images
from gan.data.stream import BatchStream
from gan.runs import checkpoints
from gan.runs.manifest import folder_of
from gan.training.context import GanContext
from gan.training.gan_state import GanState, build_state, ema_weight, update_ema
from gan.training.gan_step import discriminator_logits, train_step, update_discriminator, update_generator
from gan.utils.settings import DataConfig, set_value
from tests.conftest import TINY, again, command
from tests.training.test_resume import contents
from train import DEFAULT

Tiny = Callable[..., list[str]]


def start(*overrides: str) -> tuple[GanState, BatchStream, GanContext]:
    """A tiny run in float64, about to take its first step."""
    config = load_config(DEFAULT, [*TINY, "training.precision=fp64", "model.init_std=0.2", *overrides])
    return prepare(config)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_micro_batches_give_the_gradients_of_the_whole_batch() -> None:
    for loss in ("sngan", "hinge", "wgan-gp"):
        results = []
        for parts in (1, 4):
            # BatchNorm in G would see each micro-batch alone, which is another model; config.py warns.
            state, stream, context = start(
                f"training.accumulation={parts}",
                f"loss.name={loss}",
                "model.discriminator.norm=spectral",
                "model.generator.norm=none",
            )
            train_step(state, stream, 0, context)
            results.append({**gradients(state.discriminator), **{f"g.{k}": v for k, v in gradients(state.generator).items()}})
        for name, gradient in results[0].items():
            assert torch.allclose(results[1][name], gradient, rtol=1e-9, atol=1e-12), (loss, name)


@pytest.mark.slow
def test_joint_and_separate_batches_are_one_function_for_sn_and_two_for_msn() -> None:
    for norm, same in (("none", True), ("spectral", True), ("batch", False), ("mean_spectral", False)):
        state, stream, context = start(f"model.discriminator.norm={norm}")
        real, fake = stream.batch(0).double(), state.generator(context.noise("d_noise", 0))
        joint, separate = (
            torch.cat(discriminator_logits(state.discriminator, real, fake, joint=joint)) for joint in (True, False)
        )
        assert torch.allclose(joint, separate, rtol=1e-9) is same


def test_separate_batches_of_msn_have_means_of_their_own() -> None:
    state, stream, context = start("model.discriminator.norm=mean_spectral")
    first = state.discriminator.layers[0]
    for images in (stream.batch(0).double(), state.generator(context.noise("d_noise", 0))):
        assert torch.allclose(first(images).mean((0, 2, 3)), first.m, atol=1e-12)


def test_a_generator_update_with_joint_batches_completes_the_batch_with_real_images() -> None:
    grads = []
    for batches in ("joint", "joint_quarter", "separate"):
        state, stream, context = start(f"training.d_batches={batches}", "model.discriminator.norm=mean_spectral")
        real = stream.batch(0).double()
        # One image of four, with four times the weight, has the means that four copies of it have.
        completing = real[::4].repeat_interleave(4, 0) if batches == "joint_quarter" else real
        scores = state.discriminator(torch.cat([completing, state.generator(context.noise("g_noise", 0))]))[len(real) :]
        expected = float(nn.functional.softplus(-scores).mean())
        metrics = update_generator(state, real, context.noise("g_noise", 0), context)
        assert math.isclose(float(metrics["g_loss"]), expected, rel_tol=1e-9) is (batches != "separate")
        grads.append(gradients(state.generator))
    assert len({float(g["layers.9.bias"].norm()) for g in grads}) == 3


def test_a_generator_update_leaves_the_discriminator_alone() -> None:
    state, stream, context = start()
    before = {k: v.clone() for k, v in state.discriminator.named_parameters()}
    update_generator(state, stream.batch(0).double(), context.noise("g_noise", 0), context)
    assert all(torch.equal(v, before[k]) for k, v in state.discriminator.named_parameters())
    assert gradients(state.discriminator) == {}
    assert all(p.requires_grad for p in state.discriminator.parameters())


def test_a_discriminator_update_leaves_the_generator_alone_and_iterates_once() -> None:
    state, stream, context = start("model.discriminator.norm=spectral")
    norm = state.discriminator.layers[0]
    matrix, u = norm.layer.weight.detach().flatten(1), norm.u.clone()
    v = nn.functional.normalize(matrix.T @ u, dim=0)
    expected = nn.functional.normalize(matrix @ v, dim=0)
    update_discriminator(state, stream.batch(0).double(), torch.zeros(8, 1, 32, 32).double(), context)
    assert torch.allclose(norm.u, expected)
    assert gradients(state.generator) == {}


def test_all_fakes_of_a_step_come_from_one_pass() -> None:
    state, stream, context = start("training.d_steps=3")
    sizes: list[int] = []
    state.generator.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    train_step(state, stream, 0, context)
    assert sizes == [3 * 8, 8]


def test_wgan_clips_and_only_wgan() -> None:
    state, stream, context = start("loss.name=wgan", "loss.clip=0.01", "optimizer.name=rmsprop", "model.discriminator.norm=none")
    train_step(state, stream, 0, context)
    assert max(float(p.detach().abs().max()) for p in state.discriminator.parameters()) <= 0.01


def test_linear_decay_reaches_zero_after_the_last_step() -> None:
    state, stream, context = start("optimizer.decay=linear", "training.steps=4", "optimizer.d_lr=0.004", "optimizer.g_lr=0.4")
    rates = []
    for step in range(4):
        train_step(state, stream, step, context)
        rates.append((state.d_optimizer.param_groups[0]["lr"], state.g_optimizer.param_groups[0]["lr"]))
    assert [d for d, _ in rates] == pytest.approx([0.004, 0.003, 0.002, 0.001])
    assert [g for _, g in rates] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_the_average_of_a_constant_is_the_constant_and_of_a_jump_the_geometric_series() -> None:
    source, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    for module, value in ((source, 1.0), (average, 0.0)):
        nn.init.constant_(module.weight, value)
        module.running_mean.fill_(value)
    for update in range(1, 101):
        update_ema(average, source, ema_weight(update + 10**9, 0.9))  # long after the warm-up
    assert float(average.weight.detach()) == pytest.approx(1 - 0.9**100)
    assert float(average.running_mean) == pytest.approx(1 - 0.9**100)  # buffers too
    update_ema(average, source, ema_weight(1, 0.999))
    assert float(average.weight.detach()) > 0.8  # at first it follows: (1 + 1) / (10 + 1)


@pytest.mark.slow
def test_singular_vectors_of_the_average_are_those_of_its_own_weights() -> None:
    state, stream, context = start("model.generator.norm=spectral", "training.ema_decay=0.9")
    for step in range(30):
        train_step(state, stream, step, context)
    assert state.generator_ema is not None
    for module in state.generator_ema.modules():
        if hasattr(module, "sigma"):
            weight = module.layer.weight.detach()
            matrix = (weight.transpose(0, 1) if isinstance(module.layer, nn.ConvTranspose2d) else weight).flatten(1)
            assert float(module.sigma()) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=0.02)


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first, _, context = start("seed=7")
    torch.manual_seed(2)
    torch.rand(3)
    second = build_state(context)
    other = build_state(replace(context, config=set_value(context.config, "seed", 8)))
    weights = [state.generator.state_dict()["layers.0.0.weight"] for state in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_diverging_run_stops_with_the_last_good_checkpoint_intact(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A critic without a bound and an absurd learning rate: finite for a few steps, then not.
    wild = ["loss.name=wgan-gp", "model.discriminator.norm=none", "optimizer.d_lr=1", "checkpoint.every=1", "checkpoint.keep=1"]
    assert command(tiny(*wild, "training.steps=200", "tracking.every=7", "health.max_grad_norm=0")) == 1
    errors = capsys.readouterr().err.splitlines()
    assert "losses or gradients are not finite since step" in errors[-1]
    assert "Traceback" not in "".join(errors)
    run = tmp_path / "runs" / "tiny"
    bad = int(errors[-1].split("since step ")[1].split(" ")[0])
    kept = checkpoints.newest(run / "checkpoints", print)
    assert kept is not None
    assert kept.step == bad - 1
    assert all(value.isfinite().all() for network in kept.weights.values() for value in network.values())
    assert all(json.loads(line)["step"] < bad for line in (run / "metrics.jsonl").read_text().splitlines())


def test_bf16_trains_with_weights_in_float32(tiny: Tiny, tmp_path: Path) -> None:
    assert command(tiny("training.precision=bf16", "loss.name=wgan-gp", "training.steps=1")) == 0
    saved = checkpoints.load(folder_of(tmp_path / "runs" / "tiny" / "checkpoints", 1))
    assert {value.dtype for network in saved.weights.values() for value in network.values()} <= {torch.float32, torch.int64}


@pytest.mark.slow
def test_the_discriminator_learns_to_tell_digits_from_an_untrained_generator() -> None:
    state, stream, context = start("model.discriminator.norm=mean_spectral", "optimizer.d_lr=2e-3")
    losses = []
    for update in range(40):
        with torch.no_grad():
            fake = state.generator(context.noise("d_noise", update))
        losses.append(float(update_discriminator(state, stream.batch(update).double(), fake, context)["d_loss"]))
    assert losses[-1] < 0.4 < losses[0]  # at chance it is 1.39


def test_fp64_trains_and_samples_on_a_machine_without_git(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan.runs.environment.shutil.which", lambda _name: None)
    assert command(tiny("training.precision=fp64", "training.steps=1")) == 0
    assert json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["starts"][0]["git_commit"] is None


def test_the_commit_of_a_repository_around_an_installed_package_is_not_ours(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gan.runs.environment.__file__", str(Path(__file__).parents[1] / "site-packages" / "gan" / "runs" / "environment.py")
    )
    assert command(tiny("training.steps=1")) == 0
    assert json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["starts"][0]["git_commit"] is None


def test_a_file_that_disappears_during_training_from_memory_does_no_harm(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("L", (32, 32), index).save(tmp_path / "images" / f"{index}.png")
    images = load_images(DataConfig(name="folder", path=str(tmp_path / "images")))
    before = images.fingerprint
    (tmp_path / "images" / "1.png").unlink()
    assert images.fingerprint == before  # as it was when the run started


def test_other_settings_are_refused_before_images_are_looked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(again(run, "data.name=folder", "data.path=/nowhere")) == 2
    assert "holds a run with other settings (data.name: digits -> folder" in capsys.readouterr().err


def test_dry_run_of_a_run_that_is_refused_exits_with_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([*again(run), "--dry-run"]) == 0
    before = contents(run)
    assert command([*again(run, "optimizer.d_lr=0.5"), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds a run with other settings (optimizer.d_lr" in line
    assert contents(run) == before


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
@pytest.mark.parametrize("inside", ["", "samples"])
def test_a_runs_folder_in_place_of_images_is_refused(
    run: Path, tiny: Callable[..., list[str]], words: list[str], inside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([*tiny("data.name=folder", f"data.path={run / inside}"), *words]) == 2
    assert "its pictures are grids of samples" in capsys.readouterr().err


def test_dry_run_shows_everything_and_writes_nothing(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([*tiny("loss.name=wgan-gp"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for words in ("latent_dim: 8", "parameters (mean_spectral)", "500 G updates", "precision: fp32", "writes to:", "warning:"):
        assert words in shown
    assert not list(tmp_path.iterdir())


def test_the_configuration_that_a_run_saves_repeats_it(finished_run: Path, tmp_path: Path) -> None:
    assert command(["--config", str(finished_run / "config.yaml"), f"run.dir={tmp_path}"]) == 0
    assert (tmp_path / "run" / "samples" / "step-00000004.png").read_bytes() == (
        finished_run / "samples" / "step-00000004.png"
    ).read_bytes()
    environment = json.loads((finished_run / "environment.json").read_text())["starts"]
    assert len(environment) == 1
    assert environment[0]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment[0]["data"].endswith("1797x1x32x32")


def test_precision_auto_is_resolved_once(tmp_path: Path) -> None:
    arguments = [argument for argument in TINY if "precision" not in argument]
    arguments += [f"run.dir={tmp_path}", "run.name=auto", "training.steps=1"]
    assert command(arguments) == 0
    resolved = load_config(tmp_path / "auto" / "config.yaml")
    assert resolved.training.precision in ("bf16", "fp32")
    assert resolved.data.channels == 1
    assert GanConfig().training.precision == "auto"
    other = "fp32" if resolved.training.precision == "bf16" else "bf16"
    assert command([*arguments, "training.steps=2"]) == 0
    assert command([*arguments, "training.steps=3", f"training.precision={other}"]) == 2


@pytest.mark.slow
def test_compiled_networks_train_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of torch.compile but the code generator, which wants a compiler: tracing, and the split into forward and backward.
    compile_network = nn.Module.compile
    compiled: list[nn.Module] = []

    def trace(self: nn.Module) -> None:
        compile_network(self, backend="aot_eager", fullgraph=True)
        compiled.append(self)

    monkeypatch.setattr(nn.Module, "compile", trace)
    losses = []
    for setting in ("false", "true"):
        state, stream, context = start("model.discriminator.norm=mean_spectral", f"training.compile={setting}")
        losses.append([float(train_step(state, stream, step, context)["d_loss"]) for step in range(3)])
    assert len(compiled) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
