"""Probes measure what their names say and change no weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gan.models.norms import iterate_explicitly, normalize, power_iterate
from gan.utils.distributed import make_accelerator
from study.config import ProbesConfig
from study.models import SLOPE, build_classifier
from study.probes import Prober
from study.results import read_run
from tests.study.common import contents, train


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "mean_spectral"])
def test_probes_change_no_weight(norm: str, tmp_path: Path) -> None:
    with_probes = contents(train(tmp_path, f"model.norm={norm}", name="with"))
    without = contents(train(tmp_path, f"model.norm={norm}", "probes.every=0", name="without"))
    weights = "checkpoints/step-00000008/classifier.safetensors"
    assert with_probes[weights] == without[weights]
    assert with_probes["metrics"] == without["metrics"]


def test_probes_equal_their_definitions() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    config = ProbesConfig(every=1, bins=5)
    prober = Prober(network, config, total=10)
    x = torch.randn(4, 1, 4, 4).double()
    with prober.watching():
        network(x).square().sum().backward()
    conv, dense = network[0].weight, network[2].weight
    dense.grad[0] = 0
    first, last = prober.records(make_accelerator("cpu"))
    assert (first["layer"], last["layer"]) == (1, 2)
    assert last["gradient_zero"] == pytest.approx(1 / 3)
    assert first["weight_mean"] == pytest.approx(float(conv.mean()), rel=1e-5)
    assert first["weight_std"] == pytest.approx(float(conv.std()), rel=1e-5)
    assert first["preactivation_mean"] == pytest.approx(float(network[0](x).mean()), rel=1e-4)
    largest = [float(torch.linalg.svdvals(kernel)[0]) for kernel in conv.detach().flatten(0, 1)]
    assert first["singular_kernel_mean"] == pytest.approx(np.mean(largest), rel=1e-5)
    assert first["singular_max"] == pytest.approx(float(torch.linalg.matrix_norm(conv.flatten(1), 2)), rel=1e-5)
    assert last["singular_kernel_mean"] == pytest.approx(last["singular_max"])
    assert first["stable_rank"] == pytest.approx(float(conv.square().sum()) / first["singular_max"] ** 2, rel=1e-4)
    assert sum(first["gradient_histogram"]) == conv.numel()
    assert not network[0]._forward_hooks  # all hooks are removed


def test_under_sn_probes_are_of_the_weight_that_the_layer_computes_with(finished: Path) -> None:
    records = read_run(finished).probed(4)
    assert records[-1]["singular_max"] == pytest.approx(1, abs=0.2)  # one power iteration a step lags behind the weights
    assert records[-1]["parameter_std"] != pytest.approx(records[-1]["weight_std"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "centred"), [("batch", True), ("mean_spectral", True), ("spectral", False)])
@pytest.mark.parametrize(("model", "layers"), [("densenet_bc", None), ("cnn3", [1, 2, 3])])
def test_a_preactivation_is_centred_by_the_norm_between_layer_and_activation(
    model: Any, layers: list[int] | None, norm: str, centred: bool
) -> None:
    network = build_classifier(model, norm, channels=3, size=32, classes=10, seed=0)
    prober = Prober(network, ProbesConfig(layers=layers), total=1)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 1
    with prober.watching():
        nn.functional.cross_entropy(network(x), torch.arange(4)).backward()
    means = [abs(record["preactivation_mean"]) for record in prober.records(make_accelerator("cpu"))]
    assert all(mean < 1e-4 for mean in means) == centred
    assert not any(module._forward_pre_hooks for module in network.modules())


DEAD = -100.0  # an offset of a pre-activation that no image outweighs


@pytest.mark.parametrize(
    ("norm", "activation", "own", "next_layers"),
    [
        ("none", nn.ReLU(), 0.25, 0.25),
        ("batch", nn.ReLU(), 0.25, 0.25),
        ("spectral_projected", nn.ReLU(), 0.25, 0.25),
        ("mean_spectral_projected", nn.ReLU(), 0.25, 0.25),
        ("spectral", nn.ReLU(), 0.0, 0.25),  # Eq. 9 subtracts a multiple of u v^T, which is zero nowhere
        ("mean_spectral", nn.ReLU(), 0.0, 0.25),
        ("none", nn.LeakyReLU(SLOPE), 0.0, 0.0),
        ("batch", nn.LeakyReLU(SLOPE), 0.0, 0.0),
        ("spectral_projected", nn.LeakyReLU(SLOPE), 0.0, 0.0),
        ("spectral", nn.LeakyReLU(SLOPE), 0.0, 0.0),
        ("mean_spectral", nn.LeakyReLU(SLOPE), 0.0, 0.0),
    ],
)
def test_exact_zeros_of_a_gradient_are_those_of_dead_units_which_leaky_relu_has_not(
    norm: str, activation: nn.Module, own: float, next_layers: float
) -> None:
    """Switch one of four units off for all images: under ReLU its row, and its column of the next layer, are zero."""
    torch.manual_seed(0)
    first = normalize(nn.Conv2d(1, 4, 3), norm)
    network = iterate_explicitly(nn.Sequential(first, activation, nn.Flatten(), nn.Linear(4 * 36, 3))).double()
    offset = {"batch": "1.bias", "mean": "m"}.get(norm.partition("_")[0], "layer.bias" if "spectral" in norm else "bias")
    with torch.no_grad():
        first.get_parameter(offset)[0] = DEAD
    prober = Prober(network, ProbesConfig(every=1), total=1)
    power_iterate(network)
    with prober.watching():
        nn.functional.cross_entropy(network(torch.randn(12, 1, 8, 8).double()), torch.arange(12) % 3).backward()
    convolution, dense = prober.records(make_accelerator("cpu"))
    assert convolution["gradient_zero"] == pytest.approx(own)
    assert dense["gradient_zero"] == pytest.approx(next_layers)
