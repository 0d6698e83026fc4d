"""The losses against closed forms."""

import math

import pytest
import torch
from torch import nn

from gan.models.losses import clip_weights, discriminator_loss, generator_loss, gradient_penalty

ONE, TWO = torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.0])


@pytest.mark.parametrize(
    ("name", "d_expected", "g_expected"),
    [
        ("wgan", -1.0 - 2.0, 1.0),
        ("wgan-gp", -1.0 - 2.0, 1.0),
        ("hinge", 0.0 + 0.5, 1.0),  # real margins are met; fakes: relu(1 - 2), relu(1 + 0)
        (
            "sngan",
            (math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))) / 2 + (math.log1p(math.exp(-2)) + math.log(2)) / 2,
            (math.log1p(math.exp(2)) + math.log(2)) / 2,
        ),
    ],
)
def test_losses_of_known_scores(name: str, d_expected: float, g_expected: float) -> None:
    assert float(discriminator_loss(name, ONE, TWO)) == pytest.approx(d_expected, abs=1e-6)
    assert float(generator_loss(name, TWO)) == pytest.approx(g_expected, abs=1e-6)


def test_sngan_is_the_log_likelihood_of_equation_11() -> None:
    real, fake = torch.randn(100).double(), torch.randn(100).double()
    value = real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean()
    assert float(discriminator_loss("sngan", real, fake)) == pytest.approx(-float(value), rel=1e-12)


def test_sngan_loss_at_chance_is_two_log_two() -> None:
    assert float(discriminator_loss("sngan", torch.zeros(5), torch.zeros(5))) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.5])
def test_gradient_penalty_of_a_linear_critic_is_its_squared_excess_slope(slope: float) -> None:
    direction = nn.functional.normalize(torch.randn(3 * 4 * 4).double(), dim=0) * slope
    real, fake = torch.randn(2, 6, 3, 4, 4).double()
    penalty = gradient_penalty(lambda x: x.flatten(1) @ direction, real, fake, torch.rand(6).double())
    assert float(penalty) == pytest.approx((slope - 1) ** 2, abs=1e-9)


def test_gradient_penalty_is_taken_between_real_and_fake() -> None:
    # |grad| of |x|^2 / 2 is |x|, so the penalty tells where it was measured: at 0.25 * real + 0.75 * fake.
    real, fake = torch.full((1, 1, 1, 1), 8.0), torch.zeros(1, 1, 1, 1)
    penalty = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real, fake, torch.tensor([0.25]))
    assert float(penalty) == pytest.approx((2.0 - 1) ** 2)


def test_gradient_penalty_of_a_constant_critic_has_a_finite_gradient() -> None:
    critic = nn.Linear(4, 1)
    nn.init.zeros_(critic.weight)
    images = torch.zeros(2, 1, 2, 2)
    gradient_penalty(lambda x: critic(x.flatten(1))[:, 0], images, images, torch.rand(2)).backward()
    assert critic.weight.grad is not None
    assert critic.weight.grad.isfinite().all()


def test_gradient_penalty_reaches_the_parameters_as_finite_differences_say() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 4).double().requires_grad_()
    real, fake, epsilon = torch.randn(3, 1, 2, 2).double(), torch.randn(3, 1, 2, 2).double(), torch.rand(3).double()
    assert torch.autograd.gradcheck(
        lambda w: gradient_penalty(lambda x: (x.flatten(1) @ w.T).tanh().sum(1), real, fake, epsilon), weight
    )


def test_clipping_bounds_every_parameter() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    clip_weights(network, 0.01)
    assert max(float(p.abs().max()) for p in network.parameters()) == pytest.approx(0.01)


@pytest.mark.parametrize("call", [lambda: discriminator_loss("lsgan", ONE, TWO), lambda: generator_loss("lsgan", TWO)])
def test_unknown_loss_is_refused(call) -> None:
    with pytest.raises(ValueError, match="expected sngan, hinge, wgan or wgan-gp"):
        call()
