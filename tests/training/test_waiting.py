"""Between two records the host never waits for the device: nothing that the device computes is looked at."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gan.training.gan_step import train_step
from gan.training.health import DivergenceMonitor
from tests.conftest import command
from tests.training.test_training import start

# What makes the host wait for the device: in Python, and as operations that C++ code calls too.
LOOKS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "nonzero", "unique"}
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal.default")


class Looks(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in LOOKS:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = "aten.index" in str(function) and any(t is not None and t.dtype == torch.bool for t in args[1])
        if by_mask or any(name in str(function) for name in WAITS):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched():
    found: list[str] = []
    with Looks(found), Waits(found):
        yield found


def test_a_look_would_be_noticed() -> None:
    x = torch.ones(3)
    for look in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x.tolist(), lambda: x[x > 0]):
        with watched() as found:
            look()
        assert found


@pytest.mark.parametrize("loss", ["sngan", "hinge", "wgan-gp"])
@pytest.mark.parametrize("norm", ["none", "batch", "spectral", "mean_spectral"])
def test_a_step_with_any_norm_and_loss_trains_and_looks_at_nothing(norm: str, loss: str) -> None:
    norms = [f"model.discriminator.norm={norm}", f"model.generator.norm={norm}"]
    state, stream, context = start(*norms, f"loss.name={loss}", "data.flip=true", "optimizer.decay=linear")
    health = DivergenceMonitor(context.device, 1e6)
    before = [p.detach().clone() for p in state.generator.parameters()]
    with watched() as found:
        for step in range(2):
            metrics = train_step(state, stream, step, context)
            health.note(step, metrics)
    assert not found
    assert all(value.isfinite() for value in metrics.values())
    assert not torch.equal(before[-1], list(state.generator.parameters())[-1])


@pytest.mark.slow
def test_a_run_looks_only_where_it_records(tiny: Callable[..., list[str]]) -> None:
    counts = []
    for steps in (2, 6):
        with watched() as found:
            settings = [f"training.steps={steps}", "tracking.every=1000", "checkpoint.every=1000", "samples.every=1000"]
            assert command(tiny(*settings, name=f"run{steps}")) == 0
        counts.append(len(found))
    assert counts[0] == counts[1] > 0
