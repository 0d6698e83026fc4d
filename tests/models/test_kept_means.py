"""Means that D's update leaves for G's: the same logits as in the joint batch, each a function of its own image alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gan.models.dcgan import Discriminator
from gan.models.norms import MeanSpectralNorm, kept_means

RELEASED = ["spectral", "spectral", "spectral", "mean_spectral", "spectral", "mean_spectral", "mean_spectral", "spectral"]


@pytest.mark.parametrize("norm", ["mean_spectral", RELEASED])
@pytest.mark.parametrize("gain", [False, True])
def test_fakes_with_kept_means_have_the_logits_of_the_joint_batch(norm: str | list[str], gain: bool) -> None:
    torch.manual_seed(0)
    network = Discriminator(channels=2, image_channels=1, image_size=32, norm=norm, gain=gain, init_std=0.2).double()
    real, fake = torch.randn(2, 5, 1, 32, 32, dtype=torch.float64)
    joint = network(torch.cat([real, fake]))
    with kept_means(network):
        torch.testing.assert_close(network(fake), joint[5:])
        torch.testing.assert_close(network(fake[:2]), joint[5:7])  # whatever else is in the batch
    assert not torch.allclose(network(fake), joint[5:])  # outside the block, the fakes' own means


@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.integers(3, 7),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
)
def test_kept_means_are_those_of_the_present_weight_and_constant(
    channels: tuple[int, int], size: int, kernel: int, stride: int
) -> None:
    torch.manual_seed(0)
    layer = MeanSpectralNorm(nn.Conv2d(*channels, kernel, stride, 1).double(), iterations=0)
    kept, x = torch.randn(2, 3, channels[0], size, size, dtype=torch.float64)
    layer(kept)
    with torch.no_grad():
        layer.layer.weight.add_(torch.randn_like(layer.layer.weight))
        layer.m.normal_()
    weight = (layer.layer.weight / layer.sigma()).detach()

    def convolve(images: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(images, weight, None, stride, 1)

    expected = convolve(x) - convolve(kept).mean((0, 2, 3), keepdim=True) + layer.m.view(1, -1, 1, 1)
    x.requires_grad_()
    with kept_means(layer):
        found = layer(x)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((output * direction).sum(), x)[0] for output in (found, convolve(x)))
    torch.testing.assert_close(ours, theirs)


def test_what_g_learns_of_a_shift_between_its_images_and_real_ones() -> None:
    """The change of the fakes' mean logit when a constant is added to all fakes: docs/msn.md, for a linear network.

    Nothing where fakes are centred alone, half of spectral norm's where they are centred with real ones, all of it with kept
    means.
    """
    torch.manual_seed(0)
    layers = [nn.Conv2d(*channels, 1, bias=False) for channels in ((2, 3), (3, 3), (3, 4))]
    network = nn.Sequential(*(MeanSpectralNorm(layer, iterations=0) for layer in layers), nn.Conv2d(4, 1, 1)).double()
    real, fake = torch.randn(2, 6, 2, 4, 4, dtype=torch.float64)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def slope(logits: torch.Tensor) -> float:
        return torch.autograd.grad(logits.mean(), shift)[0].item()

    direction = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    for module in network:
        weight = module.weight().detach() if isinstance(module, MeanSpectralNorm) else module.weight.detach()
        direction = torch.conv2d(direction, weight)
    alone, joint = slope(network(fake + shift)), slope(network(torch.cat([real, fake + shift]))[6:])
    with kept_means(network):
        kept = slope(network(fake + shift))
    assert abs(direction.item()) > 0.01
    assert alone == pytest.approx(0, abs=1e-12)
    assert joint == pytest.approx(direction.item() / 2, rel=1e-9)
    assert kept == pytest.approx(direction.item(), rel=1e-9)
