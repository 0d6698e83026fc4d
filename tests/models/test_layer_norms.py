"""The norm of each layer: what a list builds, that one word is the same as its list, and which lists are refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gan.config import GanConfig, load_config
from gan.models.batch_norm import BatchNorm
from gan.models.dcgan import Discriminator, Generator
from gan.models.mean_spectral_norm import MeanSpectralNorm
from gan.models.spectral_norm import SpectralNorm
from gan.network_config import DiscriminatorConfig, GeneratorConfig
from gan.utils.errors import UserError
from tests.conftest import command

NORMS = ["none", "batch", "spectral", "mean_spectral"]
RELEASED = ["spectral", "spectral", "spectral", "mean_spectral", "spectral", "mean_spectral", "mean_spectral", "spectral"]
KINDS = {"none": nn.Module, "batch": nn.Sequential, "spectral": SpectralNorm, "mean_spectral": MeanSpectralNorm}


def discriminator(norm: str | list[str], *, gain: bool = False) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(channels=2, image_channels=1, image_size=32, norm=norm, gain=gain, init_std=0.2)


def generator(norm: str | list[str], *, gain: bool = False) -> Generator:
    torch.manual_seed(0)
    return Generator(latent_dim=3, channels=2, image_channels=1, image_size=32, norm=norm, gain=gain, init_std=0.2)


def layers(network: Discriminator | Generator) -> list[nn.Module]:
    """Return the normalised layers, from input to output."""
    passive = nn.ReLU | nn.LeakyReLU | nn.Flatten | nn.Unflatten | nn.Tanh
    return [module for module in network.layers if not isinstance(module, passive)]


def norm_of(layer: nn.Module) -> str:
    if isinstance(layer, nn.Sequential):
        assert isinstance(layer[1], BatchNorm)
        return "batch"
    if isinstance(layer, MeanSpectralNorm):
        return "mean_spectral"
    return "spectral" if isinstance(layer, SpectralNorm) else "none"


@given(st.lists(st.sampled_from(NORMS), min_size=7, max_size=7), st.sampled_from(["none", "spectral"]), st.booleans())
def test_each_layer_of_d_has_the_norm_that_the_list_names(hidden: list[str], last: str, gain: bool) -> None:
    network = discriminator([*hidden, last], gain=gain)
    assert [norm_of(layer) for layer in layers(network)] == [*hidden, last]
    images = torch.randn(4, 1, 32, 32)
    logits = network(images)
    assert logits.shape == (4,) and logits.isfinite().all()
    logits.sum().backward()
    gains = [parameter for name, parameter in network.named_parameters() if name.endswith("gain")]
    assert len(gains) == (hidden.count("mean_spectral") if gain else 0)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in gains)


@given(st.lists(st.sampled_from(NORMS), min_size=4, max_size=4), st.sampled_from(["none", "spectral"]))
def test_each_layer_of_g_has_the_norm_that_the_list_names(hidden: list[str], last: str) -> None:
    network = generator([*hidden, last])
    assert [norm_of(layer) for layer in layers(network)] == [*hidden, last]
    assert network(torch.randn(3, 3)).shape == (3, 1, 32, 32)
    # A bias that the norm would cancel is left out.
    assert (network.layers[0].state_dict().keys() >= {"layer.bias"}) == (hidden[0] == "spectral")


@pytest.mark.parametrize("norm", NORMS)
def test_one_word_is_the_list_of_that_word(norm: str) -> None:
    last = "spectral" if "spectral" in norm else "none"
    for build, hidden in ((discriminator, 7), (generator, 4)):
        one, many = build(norm).state_dict(), build([norm] * hidden + [last]).state_dict()
        assert one.keys() == many.keys()
        assert all(torch.equal(one[key], many[key]) for key in one)


def test_lengths_in_the_settings_are_those_of_the_networks() -> None:
    assert len(layers(discriminator("none"))) == DiscriminatorConfig.layers
    assert len(layers(generator("none"))) == GeneratorConfig.layers


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 4, 2, 1), nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.Linear(3, 5)])
def test_gain_is_a_factor_of_the_centred_output(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    layer, x = layer.double(), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    x = x[:, :, 0, 0] if isinstance(layer, nn.Linear) else x
    plain, scaled = MeanSpectralNorm(layer), MeanSpectralNorm(layer, gain=True)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    gain = torch.randn(5, dtype=torch.float64)
    assert scaled.gain is not None
    with torch.no_grad():
        scaled.gain.copy_(gain)
        plain.m.normal_()
        scaled.m.copy_(plain.m)
    column = (-1, 1, 1) if x.dim() == 4 else (-1,)
    m = plain.m.view(column)
    torch.testing.assert_close(scaled(x), gain.view(column) * (plain(x) - m) + m)
    # With the same running statistics, evaluation agrees too.
    with torch.no_grad():
        scaled.running_mean.copy_(gain * plain.running_mean)
    torch.testing.assert_close(scaled.eval()(x), gain.view(column) * (plain.eval()(x) - m) + m)


def test_gain_is_differentiated() -> None:
    module, x = MeanSpectralNorm(nn.Conv2d(2, 3, 3).double(), gain=True), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    assert module.gain is not None
    gradient = torch.autograd.grad((module(x) ** 2).sum(), module.gain)[0]
    step = 1e-6
    for channel in range(3):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                module.gain[channel] += sign * step
                ends.append((module(x) ** 2).sum().item())
                module.gain[channel] -= sign * step
        assert gradient[channel].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model.discriminator.layer_norms=[spectral]"], "1 norms, but the network has 8 layers"),
        (["model.generator.layer_norms=[batch,batch,batch,batch,batch]"], "must be none or spectral, not batch"),
        ([f"model.discriminator.layer_norms=[{','.join(['spectral'] * 7)},mean_spectral]"], "not mean_spectral"),
        ([f"model.discriminator.layer_norms=[{','.join(['none'] * 8)}]"], "no layer has model.discriminator.norm=mean_spectral"),
        (["model.discriminator.layer_norms=[mean]"], "mean"),
        (["model.generator.gain=true"], "only mean_spectral has a gain"),
        (["training.d_batches=apart"], "joint_d"),
        (["training.d_batches=joint_quarter", "model.discriminator.norm=batch"], "takes variances too"),
        (["training.d_batches=joint_quarter", "training.batch_size=10"], "must be a multiple of 4 (1 processes x"),
    ],
)
def test_lists_that_cannot_be_are_refused(overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--config", "cifar10_msngan_written", "--dry-run", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_released_placement_comes_with_its_gain() -> None:
    config = load_config(Path("configs/cifar10_msngan_released.yaml"))
    assert config.model.discriminator.norms == [f"{norm}_projected" for norm in RELEASED]
    assert config.model.discriminator.gain and config.resolve().training.d_batches == "separate"
    best = load_config(Path("configs/cifar10_msngan.yaml")).model.discriminator
    assert best.norms == RELEASED and best.gain
    assert best.describe_norms() == "3 x spectral, mean_spectral, spectral, 2 x mean_spectral, spectral"


@pytest.mark.parametrize("norm, batches", [("mean_spectral", "joint_quarter"), ("batch", "separate"), ("spectral", "separate")])
def test_auto_passes_real_and_fake_together_where_the_mean_is_subtracted(norm: str, batches: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"model: {{discriminator: {{norm: {norm}}}}}\n")
    assert load_config(tmp_path / "a.yaml").resolve().training.d_batches == batches
    kept = load_config(tmp_path / "a.yaml", ["training.d_batches=joint_d"])
    assert kept.resolve().training == kept.training


def test_auto_takes_whole_batches_where_a_fourth_of_one_is_no_whole_number() -> None:
    assert load_config(Path("configs/cifar10_msngan.yaml"), ["training.batch_size=10"]).resolve().training.d_batches == "joint"


def test_the_loss_that_needs_a_bounded_slope_asks_it_of_every_layer() -> None:
    with pytest.raises(UserError, match="nothing bounds the critic's slope"):
        load_config(
            Path("configs/cifar10_msngan_written.yaml"),
            ["loss.name=wgan", f"model.discriminator.layer_norms=[none,{','.join(['mean_spectral'] * 6)},spectral]"],
        )
    assert isinstance(GanConfig().model.discriminator, DiscriminatorConfig)
