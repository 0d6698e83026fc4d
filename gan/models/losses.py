"""Losses of the two players: pure functions of D's logits; and the gradient penalty and weight clipping of WGANs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def discriminator_loss(name: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return D's loss, a scalar, from its logits of real and fake images, (B,) each.

    sngan: softplus(-D(x)) + softplus(D(G(z))), the minimax objective of Eq. 11 of the MSN paper (Goodfellow et al. 2014).
    hinge: relu(1 - D(x)) + relu(1 + D(G(z))) (Miyato et al. 2018, Eq. 16).
    wgan, wgan-gp: D(G(z)) - D(x), the negative of the distance in Arjovsky et al. 2017, Eq. 2. Without the penalty.
    """
    if name == "sngan":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if name == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if name in ("wgan", "wgan-gp"):
        return fake.mean() - real.mean()
    raise ValueError(f"loss {name!r}: expected sngan, hinge, wgan or wgan-gp")


def generator_loss(name: str, fake: Tensor) -> Tensor:
    """Return G's loss, a scalar, from D's logits of its images, (B,).

    sngan: softplus(-D(G(z))), the non-saturating form. The others: -D(G(z)).
    """
    if name == "sngan":
        return F.softplus(-fake).mean()
    if name in ("hinge", "wgan", "wgan-gp"):
        return -fake.mean()
    raise ValueError(f"loss {name!r}: expected sngan, hinge, wgan or wgan-gp")


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, epsilon: Tensor) -> Tensor:
    """Return E[(|grad D(x^)| - 1)^2] at x^ = epsilon x + (1 - epsilon) G(z) (Gulrajani et al. 2017, Eq. 3), without a weight.

    ``real`` and ``fake`` are (B, C, H, W); ``epsilon`` (B,) is uniform on [0, 1]. The result can be differentiated with
    respect to the discriminator's parameters, which takes a second derivative: call it outside autocast.
    """
    epsilon = epsilon.view(-1, 1, 1, 1)
    between = (epsilon * real + (1 - epsilon) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    # sqrt has no derivative at 0: a critic that ignores an image would give NaN.
    norm = (gradient.flatten(1).square().sum(1) + torch.finfo(gradient.dtype).tiny).sqrt()
    return (norm - 1).square().mean()


@torch.no_grad()
def clip_weights(network: nn.Module, bound: float) -> None:
    """Clip every parameter to [-bound, bound] (Arjovsky et al. 2017, Algorithm 1)."""
    for parameter in network.parameters():
        parameter.clamp_(-bound, bound)
