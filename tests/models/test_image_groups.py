"""Means in which groups of images count alike: what G's update sees of a batch with few real images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gan.models.dcgan import Discriminator
from gan.models.norms import MeanSpectralNorm, groups_of_equal_weight


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.integers(3, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    last=st.booleans(),
)
def test_a_mean_over_groups_and_its_derivatives_are_those_of_the_definition(
    sizes: list[int], channels: tuple[int, int], size: int, kernel: int, stride: int, last: bool
) -> None:
    torch.manual_seed(0)
    memory = torch.channels_last if last else torch.contiguous_format
    layer = MeanSpectralNorm(nn.Conv2d(*channels, kernel, stride, 2).double(), iterations=0).to(memory_format=memory)
    nn.init.normal_(layer.m)
    x = torch.randn(sum(sizes), channels[0], size, size, dtype=torch.float64).to(memory_format=memory).requires_grad_()
    with groups_of_equal_weight(layer, tuple(sizes)):
        found = layer(x)
    h = torch.conv2d(x, layer.weight(), None, stride, 2)
    mean = torch.stack([part.mean((0, 2, 3)) for part in h.split(sizes)]).mean(0)
    expected = h - mean.view(1, -1, 1, 1) + layer.m.view(1, -1, 1, 1)
    torch.testing.assert_close(found, expected)
    inputs = [x, layer.layer.weight, layer.m]
    ours, theirs = (torch.autograd.grad((output**3).sum(), inputs, create_graph=True) for output in (found, expected))
    for own, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, reference)
    second = [torch.autograd.grad(g[0].pow(2).sum(), inputs, allow_unused=True) for g in (ours, theirs)]
    for own, reference in zip(*second, strict=True):
        torch.testing.assert_close(own, reference)


def test_copies_of_few_images_give_what_their_weight_gives() -> None:
    torch.manual_seed(0)
    network = Discriminator(channels=2, image_channels=1, image_size=32, norm="mean_spectral", init_std=0.2).double()
    real, fake = torch.randn(10, 1, 32, 32, dtype=torch.float64).split([2, 8])
    whole = network(torch.cat([real.repeat(4, 1, 1, 1), fake]))[8:]
    with groups_of_equal_weight(network, (2, 8)):
        torch.testing.assert_close(network(torch.cat([real, fake]))[2:], whole)
    assert not torch.allclose(network(torch.cat([real, fake]))[2:], whole)  # outside the block, each image counts alike


def test_what_g_learns_of_a_shift_between_its_images_and_real_ones() -> None:
    """The change of the fakes' mean logit when a constant is added to all fakes: docs/msn.md, for a linear network.

    Nothing where fakes are centred alone, half of spectral norm's where they are centred with real ones, however few of these
    there are.
    """
    torch.manual_seed(0)
    layers = [nn.Conv2d(*channels, 1, bias=False) for channels in ((2, 3), (3, 3), (3, 4))]
    network = nn.Sequential(*(MeanSpectralNorm(layer, iterations=0) for layer in layers), nn.Conv2d(4, 1, 1)).double()
    real, fake = torch.randn(2, 8, 2, 4, 4, dtype=torch.float64)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def slope(logits: torch.Tensor) -> float:
        return torch.autograd.grad(logits.mean(), shift)[0].item()

    direction = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    for module in network:
        weight = module.weight().detach() if isinstance(module, MeanSpectralNorm) else module.weight.detach()
        direction = torch.conv2d(direction, weight)
    alone, joint = slope(network(fake + shift)), slope(network(torch.cat([real, fake + shift]))[8:])
    with groups_of_equal_weight(network, (2, 8)):
        quarter = slope(network(torch.cat([real[::4], fake + shift]))[2:])
    assert abs(direction.item()) > 0.01
    assert alone == pytest.approx(0, abs=1e-12)
    assert joint == pytest.approx(direction.item() / 2, rel=1e-9)
    assert quarter == pytest.approx(direction.item() / 2, rel=1e-9)
