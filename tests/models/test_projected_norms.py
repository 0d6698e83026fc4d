"""SN and MSN as projections: the weight is overwritten by W / sigma(W), and no gradient passes through sigma."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gan.models.dcgan import Discriminator
from gan.models.norms import (
    MeanShift,
    MeanSpectralNorm,
    ProjectedMeanSpectralNorm,
    ProjectedSpectralNorm,
    SpectralNorm,
    normalize,
    power_iterate,
)
from tests.models.test_norms import close, layers_and_inputs


def largest(layer: nn.Module) -> Tensor:
    weight = layer.weight.detach()
    assert isinstance(weight, Tensor)
    matrix = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight
    return torch.linalg.matrix_norm(matrix.flatten(1), 2)


@given(layers_and_inputs(), st.sampled_from([1e-18, 1.0, 1e12]))
def test_sigma_is_the_largest_singular_value_at_any_scale(drawn: tuple[nn.Module, Tensor], scale: float) -> None:
    layer, x = drawn
    norm = ProjectedSpectralNorm(layer).double()
    with torch.no_grad():
        layer.weight.mul_(scale).add_(scale * torch.randn_like(layer.weight))
    expected = layer.weight.detach() / largest(layer)
    assert close(norm.weight(), expected, 1e-4)  # two singular values may be equal to one part in a hundred
    before = norm(x)
    norm.power_iteration()
    assert close(layer.weight, expected, 1e-4) and close(norm(x), before, 1e-6)
    assert float(largest(layer)) == pytest.approx(1, abs=1e-4)


def test_no_gradient_passes_through_sigma() -> None:
    layer = nn.Linear(4, 3).double()
    norm = ProjectedSpectralNorm(layer)
    with torch.no_grad():
        layer.weight.mul_(3)
    gradient = torch.randn(3, 4).double()
    norm.weight().backward(gradient)
    assert close(layer.weight.grad, gradient / largest(layer))
    differentiated = SpectralNorm(nn.Linear(4, 3).double())
    differentiated.weight().backward(gradient)
    radial = (differentiated.layer.weight.grad * differentiated.layer.weight).sum()
    assert abs(float(radial)) < 1e-12 < abs(float((layer.weight.grad * layer.weight).sum()))  # Eq. 9 has no radial part


def test_evaluation_leaves_the_weight_as_it_is() -> None:
    norm = ProjectedSpectralNorm(nn.Linear(5, 3)).eval()
    with torch.no_grad():
        norm.layer.weight.mul_(7)
    kept = norm.layer.weight.clone()
    output = norm(torch.ones(2, 5))
    power_iterate(norm)
    assert torch.equal(norm.layer.weight, kept)
    norm.train()
    power_iterate(norm)
    assert close(norm(torch.ones(2, 5)), output, 1e-5)
    assert close(norm.layer.weight, kept / 7, 1e-5)


def test_an_all_zero_weight_stays_zero_and_is_normalised_once_it_is_not() -> None:
    norm = ProjectedSpectralNorm(nn.Linear(4, 3))
    nn.init.zeros_(norm.layer.weight)
    power_iterate(norm)
    assert not norm.layer.weight.any() and norm(torch.ones(1, 4)).isfinite().all()
    nn.init.constant_(norm.layer.weight, 5.0)
    power_iterate(norm)
    assert float(largest(norm.layer)) == pytest.approx(1, abs=1e-5)


@given(layers_and_inputs())
def test_projected_msn_is_msn_of_the_projected_weight(drawn: tuple[nn.Module, Tensor]) -> None:
    layer, x = drawn
    norm = ProjectedMeanSpectralNorm(layer, gain=True).double()
    with torch.no_grad():
        norm.gain.uniform_(0.5, 2)
        norm.m.uniform_(-1, 1)
    h = torch.func.functional_call(layer, {"weight": layer.weight / largest(layer)}, (x,))
    others = [d for d in range(h.dim()) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(h.dim())]
    expected = norm.gain.view(shape) * (h - h.mean(others, keepdim=True)) + norm.m.view(shape)
    assert close(norm(x), expected, 1e-3)


def test_names_choose_the_class_and_the_output_layer_keeps_its_mean() -> None:
    assert type(normalize(nn.Linear(3, 2), "spectral_projected")) is ProjectedSpectralNorm
    assert type(normalize(nn.Linear(3, 2), "mean_spectral_projected")) is ProjectedMeanSpectralNorm
    assert type(normalize(nn.Linear(3, 2), "mean_spectral_projected", output=True)) is ProjectedSpectralNorm
    with pytest.raises(ValueError, match="spectral_projected"):
        normalize(nn.Linear(3, 2), "projected")


def test_a_discriminator_has_the_second_derivative_of_a_penalty() -> None:
    network = Discriminator(channels=2, image_channels=1, image_size=32, norm="spectral_projected", init_std=0.2)
    x = torch.randn(2, 1, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in network.named_parameters() if "weight" in name)


def test_a_shift_with_gain_is_its_definition_in_training_and_with_its_running_mean() -> None:
    shift, x = MeanShift(3, momentum=1.0, gain=True).double(), torch.randn(5, 3, 2, 2).double()
    with torch.no_grad():
        shift.gain.copy_(torch.tensor([0.5, 1, 2]))
        shift.m.copy_(torch.tensor([1.0, 2, 3]))
    expected = shift.gain.view(1, 3, 1, 1) * (x - x.mean((0, 2, 3), keepdim=True)) + shift.m.view(1, 3, 1, 1)
    assert close(shift(x), expected)
    assert close(shift.eval()(x), expected)
    assert MeanSpectralNorm(nn.Linear(3, 2)).gain is None
