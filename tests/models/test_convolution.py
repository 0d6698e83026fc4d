"""Convolutions of small images with large weights as products are torch's convolutions."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gan.models import convolution
from gan.models.convolution import (
    FastConv2d,
    FastConvTranspose2d,
    apply_layer,
    arguments_of,
    convolution_gradients,
    convolve,
    pad_beyond_half,
)
from gan.models.dcgan import Discriminator, Generator
from gan.models.memory_layout import Flatten, channel_sums, summed_image
from gan.models.norms import normalize


def set_limits(patch: pytest.MonkeyPatch, entries: float) -> None:
    """Use products from ``entries`` of the weight for each position on."""
    patch.setattr(convolution, "_LARGE", entries)
    patch.setattr(convolution, "_LARGE_FOR_WEIGHT_GRADIENT", entries)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Conv2d | nn.ConvTranspose2d, Tensor]:
    """A layer in float64 and its input, such that the output is not empty."""
    kernel, stride, padding, size = (draw(st.integers(1, n)) for n in (4, 3, 3, 7))
    padding = min(padding - 1, kernel - 1)
    inputs, outputs, batch = (draw(st.integers(1, 4)) for _ in range(3))
    size = max(size, kernel)
    if draw(st.booleans()):
        extra = draw(st.integers(0, stride - 1))
        layer: Any = nn.ConvTranspose2d(inputs, outputs, kernel, stride, min(padding, (kernel - 1) // 2), extra)
    else:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    torch.manual_seed(draw(st.integers(0, 9)))
    x = torch.randn(batch, inputs, size, size + draw(st.integers(0, 2))).double()
    return layer.double(), x.to(memory_format=draw(st.sampled_from([torch.channels_last, torch.contiguous_format])))


@given(layers())
@settings(deadline=None, max_examples=150)
def test_products_give_the_convolution_and_its_gradients(case: tuple[nn.Conv2d | nn.ConvTranspose2d, Tensor]) -> None:
    layer, x = case
    x.requires_grad_(True)
    output = layer(x)
    gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, [x, layer.weight, layer.bias], gradient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_computes_in_bf16", lambda x: True)  # the same product, in float64
        set_limits(patch, 1e-9)  # a kernel smaller than its stride has 0 entries for each position: torch's convolution
        weight, arguments = layer.weight.detach(), arguments_of(layer)
        computed = convolve(x.detach(), weight, layer.bias.detach(), arguments)  # type: ignore[union-attr]
        found = convolution_gradients(gradient, x.detach(), weight, arguments, (True, True, True))
    assert torch.allclose(computed, output, rtol=1e-10, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    stride=st.integers(1, 2),
    norm=st.sampled_from(["none", "batch", "spectral", "mean_spectral", "mean_spectral_projected"]),
    groups=st.integers(1, 2),
)
@settings(deadline=None, max_examples=80)
def test_a_padding_beyond_half_the_kernel_may_be_zeros_around_the_input(
    kernel: tuple[int, int], padding: tuple[int, int], stride: int, norm: str, groups: int
) -> None:
    found = []
    for patched in (False, True):
        torch.manual_seed(0)
        layer = normalize(FastConv2d(2, 4, kernel, stride, padding, groups=groups), norm).double()
        x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            if patched:
                patch.setattr(convolution, "_computes_in_bf16", lambda x: True)
                set_limits(patch, 1e9)  # no products
            output = layer(x)
            gradients = torch.autograd.grad(output.square().sum(), [x, *(p for p in layer.parameters())], allow_unused=True)
        found.append([output, *(g for g in gradients if g is not None)])  # MSN does not use the bias of the layer
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_bf16_convolutions_pad_no_more_than_half_the_kernel_themselves() -> None:
    for stride, expected in ((1, (1, 0)), (2, (3, 1))):  # where the stride is larger, torch is as fast with its own padding
        layer = nn.Conv2d(2, 3, (3, 2), stride, (3, 1))
        for dtype, paddings in ((torch.bfloat16, expected), (torch.float32, (3, 1))):
            x, arguments = pad_beyond_half(torch.ones(1, 2, 5, 5, dtype=dtype), layer.weight, arguments_of(layer))
            assert arguments.padding == paddings
            assert x.shape[2:] == (5 + 2 * (3 - paddings[0]), 5 + 2 * (1 - paddings[1]))


class Products(TorchDispatchMode):
    """Notes the shapes of weights whose gradient torch's convolution computes."""

    def __init__(self) -> None:
        super().__init__()
        self.by_torch: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name() == "aten::convolution_backward" and args[-1][1]:
            self.by_torch.append(tuple(args[2].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch", "spectral", "mean_spectral"])
def test_bf16_gradients_of_the_networks_are_those_of_torch_and_large_weights_take_the_product(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    d = Discriminator(channels=32, image_channels=3, image_size=32, norm=norm).to(memory_format=torch.channels_last)
    g = Generator(latent_dim=8, channels=32, image_channels=3, image_size=32, norm="batch").to(memory_format=torch.channels_last)
    z, found = torch.randn(16, 8), []
    for limits, dtype in ((None, torch.bfloat16), (1e9, torch.bfloat16), (None, torch.float32)):
        if limits is not None:
            set_limits(monkeypatch, limits)
        d.zero_grad()
        g.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), Products() as seen:
            images = g(z)
            loss = d(images).float().square().mean() + images.float().square().mean()
            loss.backward()
        found.append(([p.grad.clone() for network in (d, g) for p in network.parameters() if p.grad is not None], seen.by_torch))
    (fast, some), (slow, every), (exact, _) = found
    large = {(256, 128, 3, 3), (128, 128, 4, 4), (256, 128, 4, 4)}
    assert large <= set(every)
    assert not large & set(some)
    assert set(some), "small weights are torch's"
    for a, b, c in zip(fast, slow, exact, strict=True):
        assert a.dtype == torch.float32
        # Both are rounded to bf16 layer by layer, in sums of another order: neither may be further from float32.
        assert float((a - c).norm()) <= 1.5 * float((b - c).norm()) + 0.01 * float(c.norm()) + 1e-12


def test_float32_takes_torchs_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, 1e-9)
    layer, x = FastConv2d(2, 3, 3), torch.randn(2, 2, 5, 5)
    with Products() as seen:
        layer(x).sum().backward()
    assert seen.by_torch == [(3, 2, 3, 3)]


@pytest.mark.parametrize("layer", [FastConv2d(2, 3, 3, padding=1), FastConvTranspose2d(2, 3, 4, 2, 1)])
def test_a_second_derivative_is_that_of_the_convolution(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, 1e-9)
    x = torch.randn(2, 2, 4, 4).bfloat16().to(memory_format=torch.channels_last).requires_grad_(True)
    layer = layer.bfloat16()
    found = []
    for take in (True, False):
        monkeypatch.setattr(convolution, "_computes_in_bf16", lambda x, take=take: take)
        output = layer(x)
        assert ("ConvolutionByProduct" in type(output.grad_fn).__name__) is take
        (slope,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), layer.weight)[0])
    assert torch.allclose(*found, rtol=0.05, atol=0.05 * float(found[1].abs().max()))


def test_other_layers_keep_torchs_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, 1e-9)
    x = torch.randn(2, 4, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    for layer in (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ):
        layer = layer.bfloat16()
        output = apply_layer(layer, x, layer.weight, layer.bias)
        assert "ByProduct" not in type(output.grad_fn).__name__
        assert torch.equal(output, layer(x))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.floats(-3, 3))
@settings(deadline=None, max_examples=60)
def test_sums_of_bf16_are_exact_up_to_one_rounding(batch: int, channels: int, size: int, last: bool, mean: float) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    x = (torch.randn(batch, channels, size, size) + mean).bfloat16().to(memory_format=layout)
    for found, expected in (
        (summed_image(x, torch.float32), x.double().sum(0).flatten(1).T),
        (channel_sums(x, torch.float32), x.double().sum((0, 2, 3))),
    ):
        assert found.dtype == torch.float32
        # bf16 has 8 significant bits; what cancels in the sum was accumulated in float32.
        error = (found.double() - expected).abs()
        assert bool((error <= 2.0**-8 * expected.abs() + 1e-5 * x.abs().max() * batch * size**2).all())


def test_the_gradient_of_flattened_images_is_stored_channels_last() -> None:
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_(True)
    strides: list[tuple[int, ...]] = []
    y = x * 1
    y.register_hook(lambda g: strides.append(g.stride()))
    weights = torch.randn(48)
    (Flatten()(y) * weights).sum().backward()
    assert strides == [x.stride()]
    assert torch.equal(x.grad, weights.view(1, 3, 4, 4).expand(2, -1, -1, -1))
    assert torch.equal(Flatten()(x), x.flatten(1))


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_one_image_without_a_batch_and_an_empty_batch_take_torchs_own_path_in_bf16(norm: str, padding: int) -> None:
    layer = normalize(FastConv2d(2, 3, 3, padding=padding), norm).eval()
    x = torch.randn(2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x[None])[0])
        assert len(layer(torch.zeros(0, 2, 4, 4))) == 0
