"""Trainings that go wrong are noticed, named, and stopped where going on makes no sense."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gan.models.losses import discriminator_loss
from gan.runs import checkpoints
from gan.training import gan_task
from gan.training.health import DivergenceMonitor, relative_spread, spread, steps_at_chance
from gan.utils.distributed import make_accelerator
from gan.utils.errors import TrainingDivergedError
from tests.conftest import command
from tests.workers import run_together

Tiny = Callable[..., list[str]]


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_first_step_that_is_not_finite_is_remembered_with_its_numbers(tmp_path: Path) -> None:
    watch, accelerator = DivergenceMonitor(torch.device("cpu"), 1e6), make_accelerator()
    for step, value in enumerate([1.0, float("nan"), 2.0, float("inf")], start=5):
        watch.note(step, {"a": torch.tensor(step / 2), "b": torch.tensor(value)})
        if step == 5:
            watch.require(accelerator, tmp_path)
    with pytest.raises(TrainingDivergedError, match=r"not finite since step 6 \(b\)"):
        watch.require(accelerator, tmp_path)
    found = json.loads((tmp_path / "diverged.json").read_text())
    assert (found["step"], found["process"], found["values"]) == (6, 0, {"a": 3.0, "b": "nan"})


@given(st.integers(1, 6), st.sampled_from([0.0, 10.0]), st.integers(0, 3))
def test_of_any_numbers_the_first_bad_step_is_the_one_named(bad: int, limit: float, kind: int) -> None:
    values = [(1.0, 2.0)] * 8
    values[bad] = [(math.nan, 2.0), (1.0, -math.inf), (1.0, 11.0), (math.inf, 2.0)][kind]
    watch = DivergenceMonitor(torch.device("cpu"), limit)
    for step, (loss, norm) in enumerate(values):
        watch.note(step, {"loss": torch.tensor(loss), "d_grad_norm": torch.tensor(norm)})
    expected = bad if kind != 2 or limit else torch.iinfo(torch.int64).max
    assert int(watch._first) == expected


def message_in_tensorboard(run: Path) -> str:
    """Return the message that the tracker shows first."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return str(events.Tensors("message/text_summary")[0].tensor_proto.string_val[0].decode())


def diverge_on_one(out: Path) -> None:
    accelerator = make_accelerator()
    watch, wrong = DivergenceMonitor(accelerator.device, 100.0), accelerator.process_index == 1
    for step in range(4):
        watch.note(step, {"loss": torch.tensor(1.0), "g_grad_norm": torch.tensor(1e4 if wrong and step == 2 else 1.0)})
    with pytest.raises(TrainingDivergedError, match=r"exploded at step 2 \(norm 1e\+04"):
        watch.require(accelerator, out)
    accelerator.end_training()


@pytest.mark.slow
def test_what_one_of_two_processes_meets_stops_both(tmp_path: Path) -> None:
    run_together(2, diverge_on_one, tmp_path)
    found = json.loads((tmp_path / "diverged.json").read_text())
    assert (found["step"], found["process"], found["values"]["g_grad_norm"]) == (2, 1, 1e4)


@pytest.mark.slow
def test_exploding_gradients_stop_a_run_with_the_last_good_checkpoint_and_the_steps_numbers(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["loss.name=wgan-gp", "model.discriminator.norm=none", "optimizer.d_lr=0.1", "checkpoint.every=1",
        "tracking.tensorboard=true"]  # fmt: skip
    assert command(tiny(*wild, "training.steps=200", "tracking.every=3", "health.max_grad_norm=1e5")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "gradients have exploded at step" in error
    run = tmp_path / "runs" / "tiny"
    found = json.loads((run / "diverged.json").read_text())
    norms = [value for name, value in found["values"].items() if name.endswith("grad_norm")]
    assert all(isinstance(value, float) for value in norms)
    assert max(norms) > 1e5
    kept = checkpoints.newest(run / "checkpoints", print)
    assert kept is not None
    assert kept.step == found["step"] - 1
    assert "gradients have exploded" in message_in_tensorboard(run)
    # With a higher bound the same command goes on, and the record of the trouble goes.
    assert command(tiny(*wild, f"training.steps={found['step']}", "tracking.every=3", "health.max_grad_norm=0")) == 0
    assert not (run / "diverged.json").exists()


@pytest.mark.parametrize(("loss", "expected"), [("sngan", 2 * math.log(2)), ("hinge", 2.0), ("wgan", 0.0), ("wgan-gp", 0.0)])
def test_chance_is_the_loss_of_scores_that_are_all_alike(loss: str, expected: float) -> None:
    zero = torch.zeros(5)
    assert float(discriminator_loss(loss, zero, zero)) == pytest.approx(expected)
    assert steps_at_chance(loss, expected, 7, {"step": 5, "d_chance_steps": 30}) == 32
    assert steps_at_chance(loss, expected - 0.1, 7, {"step": 5, "d_chance_steps": 30}) == 0
    assert steps_at_chance(loss, expected, 7, {}) == 7


@pytest.mark.slow
def test_a_discriminator_at_chance_is_named_once_and_a_resumed_run_counts_on(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = ["optimizer.d_lr=1e-12", "model.init_std=1e-4", "health.chance_steps=5", "tracking.tensorboard=true"]
    for steps in (3, 8):
        assert command(tiny(*still, f"training.steps={steps}")) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "no better than by guessing" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: step 5: for 5 steps")
    assert "no better than by guessing" in message_in_tensorboard(tmp_path / "runs" / "tiny")
    assert [line["d_chance_steps"] for line in lines(tmp_path / "runs" / "tiny") if "d_loss" in line] == list(range(1, 9))


@pytest.mark.slow
def test_samples_that_are_all_alike_are_named_and_recorded(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan_task, "WARM_UP", 2)
    still = ["optimizer.g_lr=1e-12", "model.generator.norm=none", "samples.every=2", "training.steps=4"]
    assert command(tiny(*still, "model.init_std=1e-3")) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "the generator has collapsed" in line]
    assert [line.split(":")[1] for line in told] == [" step 2", " step 4"]
    found = [line["samples_spread"] for line in lines(tmp_path / "runs" / "tiny") if "samples_spread" in line]
    assert len(found) == 3
    assert max(found) < 0.05
    assert command(tiny(*still, "model.init_std=0.5", name="sound")) == 0
    assert "collapsed" not in capsys.readouterr().err
    assert lines(tmp_path / "runs" / "sound")[-1]["samples_spread"] > 0.2


@given(st.integers(2, 9), st.integers(0, 100))
def test_spread_is_numpys_deviation_and_zero_for_copies(count: int, seed: int) -> None:
    images = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert spread(images) == pytest.approx(images.numpy().astype(float).std(0).mean())
    assert spread(images[:1].expand(count, -1, -1, -1)) == 0
    assert relative_spread(images, spread(images)) == pytest.approx(1.0)
    assert relative_spread(images, 0.0) == 1.0


def test_real_images_beside_samples_are_of_all_classes_where_classes_follow_each_other(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, name in enumerate(("black", "white")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (32, 32), (255 * value,) * 3).save(tmp_path / "images" / name / f"{number:02}.png")
    settings = ["data.name=folder", f"data.path={tmp_path / 'images'}", "training.steps=1", "model.init_std=0.2"]
    assert command(tiny(*settings, "samples.count=16", "model.generator.norm=none")) == 0
    found = lines(tmp_path / "runs" / "tiny")[0]["samples_spread"]
    assert 0 < found < 0.9, "1 where all real images are equal"


def test_nothing_is_hidden_by_nan_to_num() -> None:
    root = Path(__file__).parents[2]
    sources = [path for folder in ("gan", "eval", "study") for path in (root / folder).rglob("*.py")]
    assert len(sources) > 40
    assert not [path for path in sources if "nan_to_num" in path.read_text()]
