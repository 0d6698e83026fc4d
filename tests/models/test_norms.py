"""The norms against their definitions, in float64."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gan.models.norms import (
    BatchNorm,
    MeanShift,
    MeanSpectralNorm,
    SpectralNorm,
    iterate_explicitly,
    normalize,
    normalize_input,
    power_iterate,
    shared_spectral_weights,
)


@st.composite
def layers_and_inputs(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution, transposed convolution or dense layer with any shape that torch allows, and a batch for it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["conv", "transposed", "dense"]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    before, after = (groups * draw(st.integers(1, 3)) for _ in range(2))
    batch, bias = draw(st.integers(2, 4)), draw(st.booleans())
    if kind == "dense":
        return nn.Linear(before, after, bias).double(), torch.randn(batch, before).double()
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding, dilation = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    height, width = (draw(st.integers(8, 11)) for _ in range(2))
    make = nn.Conv2d if kind == "conv" else nn.ConvTranspose2d
    layer = make(before, after, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias).double()
    x = torch.randn(batch, before, height, width).double()
    layouts = [draw(st.sampled_from([torch.contiguous_format, torch.channels_last])) for _ in range(2)]
    return layer.to(memory_format=layouts[0]), x.contiguous(memory_format=layouts[1])


def direct(norm: MeanSpectralNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 6 and 7 word for word: the layer's output, then its mean subtracted. Returns output and mean."""
    layer = norm.layer
    weight = layer.weight / norm.sigma()
    parameters = {"weight": weight}
    if layer.bias is not None:
        parameters["bias"] = torch.zeros_like(layer.bias)
    h = torch.func.functional_call(layer, parameters, (x,))
    others = [d for d in range(h.dim()) if d != 1]
    mean = h.mean(others, keepdim=True)
    return h - mean + norm.m.view(mean.shape), mean.flatten()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


@given(layers_and_inputs())
def test_mean_spectral_norm_by_linearity_is_the_direct_definition(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    norm = MeanSpectralNorm(layer, iterations=0)
    with torch.no_grad():
        norm.m.normal_()
    parameters = [norm.layer.weight, norm.m]
    x.requires_grad_()
    expected, mean = direct(norm, x)
    running = 0.9 * norm.running_mean + 0.1 * mean.detach()
    output = norm(x)
    assert close(output, expected)
    assert close(norm.running_mean, running)
    seed = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((output * seed).sum(), [x, *parameters]),
        torch.autograd.grad((expected * seed).sum(), [x, *parameters], retain_graph=True),
        strict=True,
    ):
        assert close(ours, theirs)
    # What a training asks for: D's own update has images without a gradient, G's has a D whose weights take none.
    (theirs,) = torch.autograd.grad((expected * seed).sum(), x)
    for parameter in (norm.layer.weight, norm.m):
        parameter.requires_grad_(False)
    (ours,) = torch.autograd.grad((norm(x) * seed).sum(), x)
    assert close(ours, theirs)


@given(layers_and_inputs())
def test_mean_spectral_norm_uses_the_running_mean_in_evaluation(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    norm = MeanSpectralNorm(layer, iterations=0)
    norm(x)
    norm.eval()
    _, mean = direct(norm, x)
    bare, _ = direct(norm, x)
    shape = [1, -1] + [1] * (x.dim() - 2)
    assert close(norm(x), bare + mean.view(shape) - norm.running_mean.view(shape))
    assert close(norm(x)[:1], norm(x[:1]))  # an image's output no longer depends on the others


@given(layers_and_inputs())
def test_output_of_mean_spectral_norm_has_mean_m(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    norm = MeanSpectralNorm(layer, iterations=0)
    with torch.no_grad():
        norm.m.normal_()
    output = norm(x)
    assert close(output.mean([d for d in range(output.dim()) if d != 1]), norm.m, 1e-11)


@pytest.mark.slow
@given(layers_and_inputs())
def test_spectral_norm_makes_the_largest_singular_value_one(case: tuple[nn.Module, Tensor]) -> None:
    layer, _ = case
    norm = SpectralNorm(layer, iterations=0)
    norm.power_iteration(1000)
    weight = norm.weight()
    matrix = weight.transpose(0, 1).flatten(1) if isinstance(layer, nn.ConvTranspose2d) else weight.flatten(1)
    assert abs(float(torch.linalg.matrix_norm(matrix, 2)) - 1) < 1e-4  # a close second singular value slows convergence


@pytest.mark.parametrize("scale", [4.0, 1e-3, 1e6])
def test_spectral_norm_of_scaled_identity_is_the_scale(scale: float) -> None:
    layer = nn.Linear(5, 5).double()
    with torch.no_grad():
        layer.weight.copy_(scale * torch.eye(5).double())
    assert float(SpectralNorm(layer).sigma()) == pytest.approx(scale, rel=1e-12)


@given(layers_and_inputs())
def test_gradient_of_spectral_norm_is_that_of_its_definition(case: tuple[nn.Module, Tensor]) -> None:
    layer, _ = case
    norm = SpectralNorm(layer, iterations=0)
    weight = norm.layer.weight
    matrix = weight.transpose(0, 1).flatten(1) if isinstance(layer, nn.ConvTranspose2d) else weight.flatten(1)
    by_definition = weight / (norm.u @ matrix @ norm.v)
    upstream = torch.randn_like(weight)
    (expected,) = torch.autograd.grad((by_definition * upstream).sum(), weight)
    (gradient,) = torch.autograd.grad((norm.weight() * upstream).sum(), weight)
    assert close(norm.weight(), by_definition)
    assert close(gradient, expected)


def test_gradient_of_spectral_norm_is_equation_9() -> None:
    layer = nn.Linear(4, 3, bias=False).double()
    norm = SpectralNorm(layer, iterations=0)
    norm.power_iteration(200)
    upstream = torch.randn(3, 4).double()
    (gradient,) = torch.autograd.grad((norm.weight() * upstream).sum(), layer.weight)
    u, _, v = torch.linalg.svd(layer.weight.detach())
    sigma = torch.linalg.matrix_norm(layer.weight.detach(), 2)
    normalised = layer.weight.detach() / sigma
    expected = (upstream - (upstream * normalised).sum() * torch.outer(u[:, 0], v[0])) / sigma
    assert close(gradient, expected, 1e-9)


def test_gradient_at_the_preactivation_is_equation_10() -> None:
    # A 1x1 convolution with weight 1 is h = g, so the gradient of its input is that of h.
    layer = nn.Conv2d(1, 1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(1)
    g = torch.randn(4, 1, 3, 3).double().requires_grad_()
    upstream = torch.randn(4, 1, 3, 3).double()
    (gradient,) = torch.autograd.grad((MeanSpectralNorm(layer)(g) * upstream).sum(), g)
    assert close(gradient, upstream - upstream.mean())


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 4, 3, 2, 1), lambda: nn.ConvTranspose2d(3, 4, 4, 2, 1)])
def test_gradients_of_mean_spectral_norm_are_finite_differences_of_equations_6_and_7(make) -> None:
    # sigma is the singular value itself here, from an SVD at each point: Eq. 8-9 say what its change does to the gradient.
    torch.manual_seed(0)
    layer = make().double()
    norm, x = MeanSpectralNorm(layer, iterations=0), torch.randn(4, 3, 6, 6).double().requires_grad_()
    norm.power_iteration(500)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    apply = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d

    def loss(x: Tensor, weight: Tensor, m: Tensor) -> Tensor:
        matrix = weight.transpose(0, 1).flatten(1) if transposed else weight.flatten(1)
        h = apply(x, weight / torch.linalg.matrix_norm(matrix, 2), None, layer.stride, layer.padding)
        return (h - h.mean((0, 2, 3), keepdim=True) + m.view(1, -1, 1, 1)).sigmoid().square().sum()

    inputs = (x, layer.weight, norm.m)
    gradients = torch.autograd.grad(norm(x).sigmoid().square().sum(), inputs)
    step = 1e-6
    for index, gradient in enumerate(gradients):
        for place in torch.randperm(gradient.numel())[:12].tolist():
            ends = []
            for sign in (1, -1):
                moved = [t.detach().clone() for t in inputs]
                moved[index].view(-1)[place] += sign * step
                ends.append(float(loss(*moved)))
            assert abs((ends[0] - ends[1]) / (2 * step) - float(gradient.flatten()[place])) < 1e-7 * float(
                gradient.abs().max() + 1
            )


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
def test_centring_is_equation_7(batch: int, channels: int, size: int, last: bool, seed: int) -> None:
    torch.manual_seed(seed)
    module = MeanShift(channels).double()
    with torch.no_grad():
        module.m.normal_()
    h = torch.randn(batch, channels, size, size).double() + 3
    h = h.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    mean = h.mean((0, 2, 3))
    expected = h - mean.view(1, -1, 1, 1) + module.m.view(1, -1, 1, 1)
    output = module(h)
    assert close(output, expected)
    assert close(module.running_mean, 0.1 * mean)
    upstream = torch.randn_like(h)
    ours = torch.autograd.grad(output, (h, module.m), upstream)
    assert all(close(a, b) for a, b in zip(ours, torch.autograd.grad(expected, (h, module.m), upstream), strict=True))
    module.eval()
    assert close(module(h), h + (module.m - module.running_mean).view(1, -1, 1, 1))


def test_centring_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    module, h = MeanShift(2).double(), torch.randn(3, 2, 2, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: module(t).sigmoid(), h)


def test_an_input_is_normalised_by_what_its_norm_says() -> None:
    kinds = [type(normalize_input(3, norm)) for norm in ("none", "spectral", "batch", "mean_spectral")]
    assert kinds == [nn.Identity, nn.Identity, BatchNorm, MeanShift]
    with pytest.raises(ValueError, match="expected none"):
        normalize_input(3, "layer")
    with pytest.raises(ValueError, match="more than one value"):
        MeanShift(3)(torch.zeros(1, 3, 1, 1))


def test_all_zero_weight_stays_zero_and_finite() -> None:
    layer = nn.Conv2d(2, 3, 3)
    nn.init.zeros_(layer.weight)
    assert torch.equal(SpectralNorm(layer).weight(), torch.zeros_like(layer.weight))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch", "spectral", "mean_spectral"])
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(2, 3, 3), lambda: nn.ConvTranspose2d(2, 3, 2), lambda: nn.Linear(6, 4)])
def test_double_backward(norm: str, make) -> None:
    torch.manual_seed(0)
    layer = make().double()
    module = iterate_explicitly(normalize(layer, norm, twice_differentiable=True).double())
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 2, 4, 4)
    for buffer in module.buffers():  # finite differences call the module many times: the running averages must not matter
        buffer.requires_grad_(False)
    assert torch.autograd.gradgradcheck(lambda t: module(t).sigmoid(), x.double().requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("norm", ["none", "batch", "spectral", "mean_spectral"])
def test_state_dict_round_trip_gives_the_same_output(norm: str) -> None:
    x = torch.randn(4, 3, 8, 8)
    first = normalize(nn.Conv2d(3, 5, 3), norm)
    first(x)
    power_iterate(first)
    second = normalize(nn.Conv2d(3, 5, 3), norm)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize("norm", ["batch", "spectral", "mean_spectral"])
def test_bf16_autocast_and_channels_last_stay_close_to_float32(norm: str) -> None:
    torch.manual_seed(0)
    module = iterate_explicitly(normalize(nn.Conv2d(8, 16, 4, 2, 1), norm))
    x = torch.randn(8, 8, 16, 16) + 3  # a mean that bf16 sums would lose
    expected = module(x)
    assert close(module.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last)), expected, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert float((output.float() - expected).abs().mean() / expected.abs().mean()) < 0.02


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0])
def test_under_bf16_the_mean_that_is_left_is_what_rounding_the_bias_leaves(mean: float) -> None:
    torch.manual_seed(0)
    module = MeanSpectralNorm(nn.Conv2d(8, 16, 3))
    x = torch.randn(64, 8, 16, 16) + mean
    removed = module(x)  # a pass in float32, to see how large the mean is
    with torch.autocast("cpu", torch.bfloat16):
        left = module(x).float().mean((0, 2, 3))
    bare = torch.nn.functional.conv2d(x, module.weight()).mean((0, 2, 3))
    assert removed.mean((0, 2, 3)).abs().max() < 1e-4
    assert (left.abs() <= bare.abs() * 2**-8 + 2e-3).all()


def test_a_weight_that_has_turned_round_gives_no_huge_output() -> None:
    norm = SpectralNorm(nn.Linear(4, 1))
    with torch.no_grad():
        norm.layer.weight.neg_()
    assert norm(torch.ones(1, 4)).abs().max() < 10


def test_a_group_of_one_process_on_a_cpu_is_one_process(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        assert normalize(nn.Conv2d(3, 5, 3), "batch")(torch.randn(2, 3, 8, 8)).shape == (2, 5, 6, 6)
    finally:
        torch.distributed.destroy_process_group()


@given(layers_and_inputs())
def test_weights_divided_once_for_two_batches_change_no_value_and_no_gradient(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    network, found = nn.Sequential(SpectralNorm(layer, initial_iterations=1, iterations=0)), []
    for once in (False, True):
        with shared_spectral_weights(network) if once else nullcontext():
            assert (network[0].weight() is network[0].weight()) == once
            outputs = network(x), network(2 * x)
        sum(y.square().sum() for y in outputs).backward()
        found.append([*outputs, layer.weight.grad])
        layer.weight.grad = None
    assert network[0].weight() is not network[0].weight()  # and kept no longer
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


def test_batch_norm_is_torchs_own_in_one_process() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(ours(x), theirs(x))
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == {k: v.tolist() for k, v in theirs.state_dict().items()}


def test_a_single_value_per_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        MeanSpectralNorm(nn.Linear(3, 2))(torch.randn(1, 3))


def test_output_layer_is_never_centred() -> None:
    assert type(normalize(nn.Linear(3, 1), "mean_spectral", output=True)) is SpectralNorm
    assert type(normalize(nn.Linear(3, 1), "batch", output=True)) is nn.Linear


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="expected none, batch, spectral, mean_spectral"):
        normalize(nn.Linear(3, 1), "layer")


@pytest.mark.parametrize("norm", [SpectralNorm, MeanSpectralNorm])
def test_a_transposed_weight_of_a_dense_layer_is_normalised(norm: type[SpectralNorm]) -> None:
    plain, tied = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
    tied.weight = nn.Parameter(plain.weight.detach().T.contiguous().T)
    assert not tied.weight.is_contiguous()
    tied.bias = plain.bias
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.manual_seed(0)
    first = norm(plain)
    torch.manual_seed(0)
    assert close(norm(tied)(x), first(x))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 1, 1)])
def test_too_few_values_for_a_mean_change_nothing(shape: tuple[int, ...]) -> None:
    layers = [normalize(nn.Conv2d(3, 4, 1), "mean_spectral"), MeanShift(3)]
    for layer in layers:
        with pytest.raises(ValueError, match="more than one value per channel"):
            layer.train()(torch.ones(shape))
        assert layer.running_mean.tolist() == [0.0] * len(layer.running_mean)
