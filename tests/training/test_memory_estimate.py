"""A batch that cannot fit into memory is refused before anything is allocated; others are not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gan.config import GanConfig
from gan.models.build import build_discriminator, build_generator
from gan.training.memory_estimate import free_bytes, gan_bytes, require_memory_for_samples
from gan.utils.errors import UserError
from tests.conftest import command
from tests.workers import config_of

CPU = torch.device("cpu")


def outputs(network: nn.Module, value: torch.Tensor) -> int:
    """Return the number of values that the layers with weights return."""
    counts: list[int] = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _layer, _input, output: counts.append(output.numel()))
    network(value)
    return sum(counts)


@pytest.mark.parametrize("size", [32, 64])
def test_the_estimate_counts_what_the_layers_return(size: int) -> None:
    settings = [f"data.image_size={size}", "data.channels=3", "training.precision=fp32", "training.d_steps=2"]
    norms = ["model.generator.norm=none", "model.discriminator.norm=none", "loss.name=sngan"]
    config: GanConfig = config_of(
        [*settings, *norms, "model.generator.channels=4", "model.discriminator.channels=8", "training.batch_size=8"]
    )
    images = torch.zeros(1, 3, size, size)
    discriminator = outputs(build_discriminator(config), images) - 1  # the logit
    generator = outputs(build_generator(config), torch.zeros(1, config.model.latent_dim)) - images.numel()
    expected = 8 * (4 * max(2 * discriminator, discriminator + generator) + 4 * 3 * images.numel())
    assert gan_bytes(config, 8) == pytest.approx(expected)


@pytest.mark.parametrize("arguments", [["training.batch_size=1000000"], ["training.batch_size=1000000", "training.d_steps=5"]])
def test_a_batch_of_a_million_is_refused_at_once(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([*arguments, f"run.dir={tmp_path}", "training.steps=1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: training.batch_size=1000000: needs more than ")
    assert "are free on cpu. Lower it" in error
    assert not list(tmp_path.iterdir())


def test_accumulation_lets_a_large_batch_fit(tiny: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan.training.memory_estimate.free_bytes", lambda _device: 15e6)
    settings = ["training.batch_size=512", "training.steps=1", "model.discriminator.norm=spectral"]
    assert command(tiny(*settings)) == 2
    assert command(tiny(*settings, "training.accumulation=8")) == 0


def test_a_batch_of_more_images_than_there_are_is_warned_about(
    tiny: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny("training.batch_size=2000", "training.steps=1", "model.discriminator.norm=spectral")) == 0
    assert "training.batch_size=2000 is more than the 1,797 images" in capsys.readouterr().err
    assert command(tiny("training.batch_size=8", "training.steps=1", name="other")) == 0
    assert "is more than the" not in capsys.readouterr().err


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\n")
    assert free_bytes(CPU, tmp_path, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")
    assert free_bytes(CPU, tmp_path, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    assert free_bytes(CPU, tmp_path, tmp_path) == 2_000_000
    assert free_bytes(torch.device("meta"), tmp_path, tmp_path) is None
    assert free_bytes(CPU, tmp_path / "none", tmp_path / "none") is None


def test_samples_that_do_not_fit_are_refused_by_what_makes_them_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan.training.memory_estimate.free_bytes", lambda _device: 1.5e9)
    large = ["data.image_size=512", "training.batch_size=2", "model.generator.channels=16"]
    with pytest.raises(UserError, match=r"data.image_size=512: samples are made 64 at a time, which needs more than 1.6 GB"):
        require_memory_for_samples(config_of(large), CPU)
    require_memory_for_samples(config_of([*large, "samples.every=0", "evaluation.every=0"]), CPU)
    require_memory_for_samples(config_of(["data.image_size=256", *large[1:]]), CPU)
