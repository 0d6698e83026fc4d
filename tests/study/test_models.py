"""Networks of the study: parameters, layers, norms, sizes and initial weights."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gan.models.norms import BatchNorm, SpectralNorm
from study.models import WeightedLayer, build_classifier, densenet_bc, weighted_layers
from study.tables import count_rows


def test_parameters_are_those_of_table_iii_and_differ_by_what_is_known() -> None:
    differences = {(model, norm): difference for model, norm, _, _, difference, _ in count_rows() if difference is not None}
    assert differences == {
        ("WGAN (discriminator)", "batch"): 0, ("WGAN (discriminator)", "spectral"): 0,
        ("WGAN (discriminator)", "mean_spectral"): 1, ("3-layer CNN", "batch"): 0, ("3-layer CNN", "spectral"): 4,
        ("3-layer CNN", "mean_spectral"): 4, ("VGG-7", "batch"): 0, ("VGG-7", "spectral"): 6, ("VGG-7", "mean_spectral"): 6,
        ("DenseNet-BC", "batch"): 0, ("DenseNet-BC", "spectral"): 4, ("DenseNet-BC", "mean_spectral"): 3,
    }  # fmt: skip
    ours = {(model, norm): count for model, norm, _, count, _, _ in count_rows()}
    assert (ours["DenseNet-BC", "spectral"], ours["DenseNet-BC", "mean_spectral"]) == (1_007_604, 1_008_667)
    assert all(reason for _, _, _, _, difference, reason in count_rows() if difference)


@pytest.mark.parametrize("variant", ["full", "published"])
def test_densenet_bc_has_100_layers_and_norms_where_they_belong(variant: Any) -> None:
    network = densenet_bc("mean_spectral", variant=variant)
    layers = weighted_layers(network)
    assert [layer.number for layer in layers] == list(range(1, 101))
    spectral = {layer.number for layer in layers if isinstance(layer.module, SpectralNorm)}
    assert spectral == (set(range(1, 101)) if variant == "full" else {1, 34, 67, 100})
    inside = sum(p.numel() for m in network.modules() if isinstance(m, BatchNorm) for p in m.parameters())
    assert inside == (0 if variant == "full" else 28_832)


@given(st.sampled_from(["cnn3", "vgg7"]), st.integers(32, 40), st.integers(2, 12), st.sampled_from([1, 3]))
def test_images_of_any_size_give_a_logit_for_each_class(name: Any, size: int, classes: int, channels: int) -> None:
    network = build_classifier(name, "mean_spectral", channels=channels, size=size, classes=classes, seed=0)
    assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("name", ["vgg7", "densenet_bc"])
def test_images_that_are_too_small_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="too small"):
        build_classifier(name, "batch", channels=3, size=1, classes=10, seed=0)


def test_initial_weights_are_a_function_of_the_seed_and_the_same_under_every_norm() -> None:
    def first(norm: str, seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # the result must not depend on the global generator
        network = build_classifier("cnn3", norm, channels=1, size=28, classes=10, seed=seed)
        return weighted_layers(network)[0].parameter

    assert torch.equal(first("batch", 3), first("batch", 3))
    assert torch.equal(first("batch", 3), first("mean_spectral", 3))
    assert not torch.equal(first("batch", 3), first("batch", 4))


@pytest.mark.parametrize(
    ("singular_values", "expected"),
    [([3.0, 3.0, 3.0, 3.0], 4.0), ([5.0, 0.0, 0.0, 0.0], 1.0), ([2.0, 1.0, 1.0, 0.0], 1.5), ([0.0] * 4, 0.0)],
)
def test_the_stable_rank_counts_directions_by_their_squared_slope(singular_values: list[float], expected: float) -> None:
    left, right = (torch.linalg.qr(torch.randn(size, size))[0] for size in (4, 9))
    layer = torch.nn.Conv2d(1, 4, 3)
    with torch.no_grad():
        layer.weight.copy_((left @ torch.diag(torch.tensor(singular_values)) @ right[:4]).view(4, 1, 3, 3))
    assert WeightedLayer(1, "", layer).stable_rank == pytest.approx(expected, rel=1e-4, abs=1e-6)
