"""Means over real images that D's update leaves for G's: the same output as the joint batch, with those means as constants."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gan.models.dcgan import Discriminator
from gan.models.norms import MeanSpectralNorm, complete_with_remembered, remember_first_half

RELEASED = ["spectral", "spectral", "spectral", "mean_spectral", "spectral", "mean_spectral", "mean_spectral", "spectral"]


@pytest.mark.parametrize("norm", ["mean_spectral", RELEASED])
@pytest.mark.parametrize("gain", [False, True])
def test_fakes_completed_with_remembered_means_have_the_logits_of_the_joint_batch(norm: str | list[str], gain: bool) -> None:
    torch.manual_seed(0)
    network = Discriminator(channels=2, image_channels=1, image_size=32, norm=norm, gain=gain, init_std=0.2).double()
    real, fake = torch.randn(2, 5, 1, 32, 32, dtype=torch.float64)
    joint = network(torch.cat([real, fake]))
    with remember_first_half(network, 5):
        torch.testing.assert_close(network(torch.cat([real, fake])), joint)
    with complete_with_remembered(network):
        torch.testing.assert_close(network(fake), joint[5:])
    assert not torch.allclose(network(fake), joint[5:])  # outside the block, the fakes' own means


@given(
    images=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.integers(3, 7),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
)
def test_gradients_are_those_of_the_definition(
    images: int, channels: tuple[int, int], size: int, kernel: int, stride: int
) -> None:
    torch.manual_seed(0)
    layer = MeanSpectralNorm(nn.Conv2d(*channels, kernel, stride, 1).double())
    real, fake = torch.randn(2, images, channels[0], size, size, dtype=torch.float64)
    with remember_first_half(layer, images):
        layer(torch.cat([real, fake]))

    def completed(fake: Tensor, raw: Tensor, m: Tensor) -> Tensor:
        with complete_with_remembered(layer):
            output: Tensor = torch.func.functional_call(layer, {"layer.weight": raw, "m": m}, (fake,))
        return output

    def defined(fake: Tensor, raw: Tensor, m: Tensor) -> Tensor:
        weight = raw / torch.dot(layer.u, raw.flatten(1) @ layer.v)
        convolve = partial(torch.conv2d, weight=weight, stride=stride, padding=1)
        both = torch.cat([convolve(fake), convolve(real)])
        return convolve(fake) - both.mean((0, 2, 3), keepdim=True) + m.view(1, -1, 1, 1)

    given = [fake, layer.layer.weight.detach().clone(), torch.randn(channels[1], dtype=torch.float64)]
    inputs = [value.requires_grad_() for value in given]
    ours, theirs = completed(*inputs), defined(*inputs)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    for found, expected in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction), strict=True
    ):
        torch.testing.assert_close(found, expected)
    # Differentiated twice, autograd takes the definition.
    again = [torch.autograd.grad((f(*inputs) * direction).sum(), inputs[0], create_graph=True)[0] for f in (completed, defined)]
    seconds = [torch.autograd.grad((first**2).sum(), inputs[1])[0] for first in again]
    torch.testing.assert_close(*seconds)
