"""Spectral norm of any weight, in anybody's loop: when it iterates, at every scale, from zero; which layers it takes."""

import pytest
import torch
from torch import Tensor, nn

from gan.models.dcgan import Discriminator, Generator
from gan.models.norms import (
    MeanSpectralNorm,
    SpectralNorm,
    iterate_explicitly,
    normalize,
    power_iterate,
    shared_spectral_weights,
)
from study.models import cnn3, densenet_bc, vgg7


def largest_singular_value(norm: SpectralNorm) -> float:
    """That of the weight in use, in float64."""
    return float(torch.linalg.matrix_norm(norm.weight().detach().double().flatten(1), 2))


def train_towards(norm: nn.Module, steps: int) -> None:
    """Train a dense layer 8 -> 4 to return 5 times its first inputs, in somebody's own loop."""
    optimizer = torch.optim.Adam(norm.parameters(), 0.05)
    for _ in range(steps):
        x = torch.randn(32, 8)
        optimizer.zero_grad()
        (norm(x) - 5 * x[:, :4]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("norm", ["spectral", "mean_spectral"])
@pytest.mark.parametrize("start", [nn.init.zeros_, nn.init.xavier_normal_, lambda weight: weight.data.mul_(1e-20)])
def test_a_layer_in_somebodys_own_network_is_normalised_from_any_start(norm: str, start) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    start(layer.weight)
    module = normalize(layer, norm)
    train_towards(module, 200)
    module(torch.randn(32, 8))
    assert largest_singular_value(module) == pytest.approx(1, abs=0.1)  # sigma lags behind the weight by an update
    assert [float(vector.norm()) for vector in (module.u, module.v)] == pytest.approx([1, 1], abs=1e-6)


def test_each_forward_pass_in_training_takes_its_power_iterations_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3)
    ours, by_hand = SpectralNorm(layer, initial_iterations=1, iterations=2), SpectralNorm(layer, initial_iterations=1)
    by_hand.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8, 8)
    ours(x)
    by_hand.power_iteration(2)
    assert torch.equal(ours.u, by_hand.u)
    assert torch.equal(ours.v, by_hand.v)
    with shared_spectral_weights(ours):  # counts as one pass
        ours(x)
        ours(x)
    by_hand.power_iteration(2)
    assert torch.equal(ours.u, by_hand.u)
    ours.weight()
    ours.sigma()
    ours.eval()(x)
    assert torch.equal(ours.u, by_hand.u)


def test_a_loss_of_several_passes_takes_the_gradient_of_each_at_its_own_sigma() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    norm, by_hand = (SpectralNorm(layer, initial_iterations=2, iterations=iterations) for iterations in (1, 0))
    by_hand.load_state_dict(norm.state_dict())
    (found,) = torch.autograd.grad(norm(x).sin().sum() + norm(2 * x).cos().sum(), layer.weight)
    expected = torch.zeros_like(found)
    for function, factor in ((torch.sin, 1), (torch.cos, 2)):
        by_hand.power_iteration()
        expected += torch.autograd.grad(function(by_hand(factor * x)).sum(), layer.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_after_iterate_explicitly_power_iteration_runs_only_when_asked() -> None:
    module = iterate_explicitly(normalize(nn.Conv2d(3, 5, 3), "mean_spectral"))
    before = module.u.clone()
    module(torch.randn(2, 3, 8, 8))
    assert torch.equal(module.u, before)
    with torch.no_grad():
        module.layer.weight.normal_()
    power_iterate(module)
    assert not torch.equal(module.u, before)


@pytest.mark.parametrize(
    "network",
    [
        Generator(latent_dim=4, channels=2, image_channels=1, image_size=32, norm="spectral"),
        Discriminator(channels=2, image_channels=1, image_size=32, norm="mean_spectral"),
        cnn3("spectral"),
        vgg7("mean_spectral"),
        densenet_bc("mean_spectral"),
    ],
    ids=["generator", "discriminator", "cnn3", "vgg7", "densenet_bc"],
)
def test_the_networks_that_the_loop_trains_iterate_explicitly(network: nn.Module) -> None:
    layers = [module for module in network.modules() if isinstance(module, SpectralNorm)]
    assert layers
    assert all(layer.iterations == 0 for layer in layers)


TINIEST = {torch.float32: 1e-45, torch.float64: 5e-324, torch.bfloat16: 1e-40}


@pytest.mark.parametrize("dtype", TINIEST)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_is_the_same_whatever_the_scale_of_its_weight(dtype: torch.dtype, transposed: bool) -> None:
    most = torch.finfo(dtype).max / 4
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.03}[dtype]
    draw = torch.randn(6, 10, 3, 3, generator=torch.Generator().manual_seed(3)).double().clamp(-3, 3)
    # Beside the noise a large entry, so that few iterations are enough.
    draw[1, 2, 0, 1] = 30
    pattern = draw / 10
    for scale in (TINIEST[dtype] * 9, 1e-38, 1e-30, 1e-14, 1e-7, 1.0, 1e9, 1e19, 1e30, most):
        layer: nn.Conv2d | nn.ConvTranspose2d = nn.Conv2d(10, 6, 3, bias=False)
        if transposed:
            layer = nn.ConvTranspose2d(6, 10, 3, bias=False)
        layer = layer.to(dtype)
        with torch.no_grad():
            layer.weight.copy_((pattern * scale).to(dtype))
        held = layer.weight.detach().double()  # what this precision holds of it
        held = held / held.abs().max()
        norm = SpectralNorm(layer, iterations=0)
        norm.power_iteration(60)
        matrix = held.transpose(0, 1).flatten(1) if transposed else held.flatten(1)
        expected = held / torch.linalg.matrix_norm(matrix, 2)
        assert float((norm.weight().detach().double() - expected).abs().max()) < tolerance, scale
        if 1e-30 <= scale < most:  # sigma, by which the gradient is divided, is in the range of the precision
            (gradient,) = torch.autograd.grad((norm.weight().double() * pattern.sin()).sum(), layer.weight)
            assert gradient.isfinite().all(), scale


@pytest.mark.parametrize("weight", [[[0.0, 0], [0, 1]], [[0.0, 0], [0, 1e-30]], [[0.0, 0], [1e25, -1e25]]])
def test_vectors_that_a_new_weight_maps_to_zero_are_left(weight: list[list[float]]) -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [0, 0]]))
    norm = SpectralNorm(layer)
    norm.power_iteration(50)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    norm.power_iteration(50)
    assert largest_singular_value(norm) == pytest.approx(1, abs=1e-5)


def test_zero_vectors_of_an_old_checkpoint_recover() -> None:
    norm = SpectralNorm(nn.Linear(5, 3))
    norm.load_state_dict(norm.state_dict() | {"u": torch.zeros(3), "v": torch.zeros(5)})
    norm.power_iteration(200)
    assert largest_singular_value(norm) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.ConvTranspose1d(3, 4, 3), nn.ConvTranspose3d(3, 4, 3), nn.Embedding(3, 4),
        nn.Bilinear(2, 3, 4), nn.LSTM(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(3, 4)), SpectralNorm(nn.Linear(3, 4)),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_a_layer_that_the_norms_do_not_know_is_refused_in_words(layer: nn.Module) -> None:
    words = f"^{type(layer).__name__}: expected a Conv2d, ConvTranspose2d or Linear$"
    for wrap in (SpectralNorm, MeanSpectralNorm):
        with pytest.raises(TypeError, match=words):
            wrap(layer)
    for norm in ("batch", "spectral", "mean_spectral", "none"):
        with pytest.raises(TypeError, match=words):
            normalize(layer, norm)


def test_a_layer_without_a_weight_yet_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"^LazyConv2d: its weight has no shape yet\."):
        SpectralNorm(nn.LazyConv2d(4, 3))


@pytest.mark.parametrize("norm", ["spectral", "mean_spectral"])
def test_a_layer_works_on_the_meta_device_and_under_function_transforms(norm: str) -> None:
    def energy(x: Tensor) -> Tensor:
        return module(x).square().sum()

    module = normalize(nn.Conv2d(3, 4, 3), norm).eval()
    x = torch.randn(2, 3, 8, 8)
    found = torch.func.grad(energy)(x)
    torch.testing.assert_close(found, torch.autograd.grad(energy(x.requires_grad_()), x)[0])
    assert normalize(nn.Conv2d(3, 4, 3, device="meta"), norm)(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 4, 6, 6)
