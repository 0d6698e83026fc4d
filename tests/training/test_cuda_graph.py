"""A step whose inputs stay in the same memory, as a CUDA graph needs it, is the same step. The graph itself: tests/gpu."""

import logging

import pytest
import torch

from gan.config import load_config
from gan.training.context import Metrics
from gan.training.cuda_graph import WARM_UP, GraphedStep, Step, step_function
from gan.training.gan_state import restore, snapshot
from gan.training.gan_step import train_step
from gan.utils.errors import UserError
from tests.training.test_training import start
from train import DEFAULT

RATE = 2.0**-10  # the same number in float32 and float64
SETTINGS = [f"optimizer.d_lr={RATE}", f"optimizer.g_lr={RATE}", "optimizer.decay=linear", "training.steps=8"]
TRAININGS = {
    "SN": ["model.discriminator.norm=spectral"],
    "MSN, several updates of D": ["model.discriminator.norm=mean_spectral", "training.d_steps=2", "data.flip=true"],
    "BN, RMSprop": ["model.discriminator.norm=batch", "loss.name=hinge", "optimizer.name=rmsprop"],
    "micro-batches": ["model.discriminator.norm=spectral", "training.accumulation=2", "training.ema_decay=0"],
}


class Recorder:
    """Stands for a CUDA graph on a CPU: takes no step when it captures, and counts replays."""

    def __init__(self) -> None:
        self.replays = 0

    def warm_up(self, function: Step) -> Metrics:
        return function()

    def capture(self, function: Step) -> Step:
        def replay() -> Metrics:
            self.replays += 1
            return function()

        return replay


@pytest.mark.parametrize("settings", TRAININGS.values(), ids=TRAININGS)
def test_steps_with_inputs_in_the_same_memory_are_those_of_the_plain_step(settings: list[str]) -> None:
    plain, stream, context = start(*SETTINGS, *settings)
    graphed, _, _ = start(*SETTINGS, *settings)
    recorder = Recorder()
    step = GraphedStep(graphed, stream, context, recorder)
    for number in range(WARM_UP + 3):
        expected, found = train_step(plain, stream, number, context), step(number)
        assert {k: float(v) for k, v in found.items()} == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-6)
    assert recorder.replays == 3
    for a, b in zip(plain.best_generator.parameters(), graphed.best_generator.parameters(), strict=True):
        # Learning rates are products of float32 numbers here, so that their last digits differ.
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_of_a_graphed_run_is_that_of_any_other_and_resumes_bit_exactly() -> None:
    settings = [*SETTINGS, "model.discriminator.norm=mean_spectral"]
    states = []
    for stop in (None, 2, 5):
        state, stream, context = start(*settings)
        step = GraphedStep(state, stream, context, Recorder())
        for number in range(8):
            if number == stop:
                saved = snapshot(state, number, context.config, "")
                assert all(group["lr"].__class__ is float for group in saved.optimizers["generator"]["param_groups"])
                assert not any(group["capturable"] for group in saved.optimizers["generator"]["param_groups"])
                state, stream, context = start(*settings)
                restore(state, saved)
                step = GraphedStep(state, stream, context, Recorder())
            step(number)
        states.append(snapshot(state, 8, context.config, "").weights)
    for network in ("generator", "discriminator", "ema"):
        for name, value in states[0][network].items():
            assert all(torch.equal(value, other[network][name]) for other in states[1:]), name


def test_a_capture_that_fails_is_told_and_the_step_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Recorder):
        def capture(self, function: Step) -> Step:
            raise RuntimeError("operation not permitted when stream is capturing\ndetails")

    plain, stream, context = start(*SETTINGS)
    graphed, _, _ = start(*SETTINGS)
    step = GraphedStep(graphed, stream, context, Refusing())
    with caplog.at_level(logging.WARNING):
        for number in range(WARM_UP + 2):
            expected, found = train_step(plain, stream, number, context), step(number)
    assert float(found["d_loss"]) == pytest.approx(float(expected["d_loss"]), rel=1e-6)
    assert caplog.text.count("cannot be captured (operation not permitted when stream is capturing)") == 1


def test_without_a_gpu_the_setting_is_answered_in_words(caplog: pytest.LogCaptureFixture) -> None:
    state, stream, context = start("training.cuda_graph=true")
    with caplog.at_level(logging.WARNING):
        step = step_function(state, stream, context)
    assert not isinstance(step, GraphedStep)
    assert "on a GPU only" in caplog.text
    assert step(0).keys() >= {"d_loss", "g_loss"}


def test_a_gradient_penalty_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.cuda_graph"):
        load_config(DEFAULT, ["training.cuda_graph=true", "loss.name=wgan-gp"])
