"""Samples are functions of seed and index; grids, walks, animations and exports hold them."""

import contextlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import gan.__main__
from gan import load_generator
from gan.inference import sampling
from gan.inference.images import grid, save_images, to_uint8
from gan.inference.sampling import latents, slerp
from gan.utils import cli
from gan.utils.errors import UserError


def program(*arguments: object) -> int:
    return cli.run(lambda: gan.__main__.main([str(argument) for argument in arguments]))


def test_a_sample_is_a_function_of_seed_and_index_to_the_last_bit(finished_run: Path) -> None:
    generator = load_generator(finished_run)
    whole = generator.sample(150, seed=3)
    assert whole.shape == (150, 1, 32, 32)
    assert whole.dtype == torch.uint8
    for start, count in ((0, 1), (63, 2), (64, 64), (100, 50), (149, 1)):
        assert torch.equal(generator.sample(count, seed=3, start=start), whole[start : start + count])
    assert not torch.equal(generator.sample(10, seed=4), whole[:10])


def test_sampling_leaves_the_generator_as_it_was(finished_run: Path) -> None:
    network = load_generator(finished_run, "raw").network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sampling.render(network, latents(0, 0, 5, 8))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_run_checkpoint_and_export_give_the_same_samples(finished_run: Path, tmp_path: Path) -> None:
    assert program("export", finished_run, "--out", tmp_path / "exported") == 0
    newest = finished_run / "checkpoints" / "step-00000004"
    samples = [load_generator(path).sample(5) for path in (finished_run, newest, tmp_path / "exported")]
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])
    assert load_generator(tmp_path / "exported").step == 4
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "4 generator updates" in card
    assert "| loss | sngan" in card
    assert Image.open(tmp_path / "exported" / "grid.png").size == (274, 274)
    assert not (tmp_path / "exported" / "optimizers.pt").exists()


def test_averaged_and_raw_weights_are_different_and_averaged_is_the_default(finished_run: Path) -> None:
    averaged, raw, default = (load_generator(finished_run, weights) for weights in ("ema", "raw", None))
    assert default.weights == "ema"
    assert torch.equal(default.network.state_dict()["layers.0.0.weight"], averaged.network.state_dict()["layers.0.0.weight"])
    assert not torch.equal(raw.network.state_dict()["layers.0.0.weight"], averaged.network.state_dict()["layers.0.0.weight"])


def test_a_damaged_newest_checkpoint_is_passed_over(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "ema.safetensors").write_bytes(b"")
    assert load_generator(tmp_path / "run").step == 2
    assert "step-00000002 is used instead." in capsys.readouterr().err
    assert load_generator(tmp_path / "run", "raw").step == 4


def test_wrong_arguments_in_code_say_what_was_expected(finished_run: Path) -> None:
    with pytest.raises(ValueError, match="expected 'ema' or 'raw'"):
        load_generator(finished_run, "EMA")
    with pytest.raises(ValueError, match="count=0: expected a whole number from 1 up"):
        load_generator(finished_run).sample(0)


def test_the_grid_of_the_run_is_what_sample_draws(finished_run: Path, tmp_path: Path) -> None:
    assert program("sample", finished_run, "--out", tmp_path / "new" / "grid.png", "--count", 4, "--seed", 0) == 0
    assert (tmp_path / "new" / "grid.png").read_bytes() == (finished_run / "samples" / "step-00000004.png").read_bytes()


def test_single_images_into_a_folder_and_a_zip_are_the_samples(finished_run: Path, tmp_path: Path) -> None:
    for out in ("folder", "images.zip"):
        assert program("sample", finished_run, "--out", tmp_path / out, "--single", "--count", 70, "--seed", 2) == 0
    zipfile.ZipFile(tmp_path / "images.zip").extractall(tmp_path / "unpacked")
    expected = load_generator(finished_run).sample(70, seed=2)
    for folder in ("folder", "unpacked"):
        files = sorted((tmp_path / folder).iterdir())
        assert [file.name for file in files][::69] == ["000000.png", "000069.png"]
        assert np.array_equal(np.stack([np.array(Image.open(file)) for file in files]), expected[:, 0].numpy())


def test_interpolation_starts_and_ends_at_samples(finished_run: Path, tmp_path: Path) -> None:
    assert program("sample", finished_run, "--out", tmp_path / "walk.png", "--interpolate", 2, "--columns", 5) == 0
    generator = load_generator(finished_run)
    images = sampling.interpolations(generator.network, seed=0, rows=2, columns=5, latent_dim=8)
    assert np.array_equal(np.array(Image.open(tmp_path / "walk.png")), grid(images, 5))
    ends = generator.sample(4)
    assert (images[[0, 4, 5, 9]].int() - ends.int()).abs().max() <= 1


@pytest.mark.parametrize(("source", "frames"), [("samples", 3), ("checkpoints", 2)])
def test_an_animation_shows_the_training(source: str, frames: int, finished_run: Path, tmp_path: Path) -> None:
    count = ("--count", 9) if source == "checkpoints" else ()  # the run's own pictures are as they are
    assert program("sample", finished_run, "--out", tmp_path / "a.gif", "--animate", source, *count) == 0
    animation = Image.open(tmp_path / "a.gif")
    assert animation.n_frames == frames
    assert animation.info["loop"] == 0


@given(st.floats(-1.2, 1.2))
def test_quantisation_rounds_to_the_nearest_level(value: float) -> None:
    level = int(to_uint8(torch.tensor([value]))[0])
    assert abs(level - min(255, max(0, (value + 1) * 127.5))) <= 0.5 + 1e-4


def test_quantisation_and_the_data_set_are_inverse() -> None:
    levels = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)


@given(st.integers(2, 64), st.floats(0, 1))
def test_slerp_keeps_the_length_between_equally_long_ends(dimension: int, t: float) -> None:
    generator = torch.Generator().manual_seed(dimension)
    a, b = torch.nn.functional.normalize(torch.randn(2, 3, dimension, generator=generator).double(), dim=2) * 5
    assert torch.allclose(slerp(a, b, t).norm(dim=1), torch.full((3,), 5.0).double(), atol=1e-4)
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    assert torch.allclose(slerp(a, a, t), a)


@given(st.integers(1, 20), st.sampled_from([1, 3]), st.one_of(st.none(), st.integers(1, 7)))
def test_a_grid_holds_every_image_once(count: int, channels: int, columns: int | None) -> None:
    images = (torch.arange(count * channels * 16) % 200).to(torch.uint8).view(count, channels, 4, 4)
    pixels = grid(images, columns)
    across = (pixels.shape[1] - 2) // 6
    for index in range(count):
        top, left = 2 + index // across * 6, 2 + index % across * 6
        cell = pixels[top : top + 4, left : left + 4]
        assert np.array_equal(cell if channels == 3 else cell[..., None], images[index].permute(1, 2, 0).numpy())


def test_a_grid_of_too_many_images_is_refused_and_single_images_are_counted(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program("sample", finished_run, "--out", tmp_path / "grid.png", "--count", 100_000_000) == 2
    assert "a grid shows at most 10,000 images. Add --single" in capsys.readouterr().err
    shown = []
    monkeypatch.setattr("gan.inference.command.progress", lambda total, what: contextlib.nullcontext(Bar(shown)))
    assert program("sample", finished_run, "--out", tmp_path / "many.zip", "--single", "--count", 100) == 0
    assert shown == [64, 36]


class Bar:
    """Notes by how much it was advanced."""

    def __init__(self, shown: list[int]) -> None:
        self.update = shown.append


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--columns", str(2**62)], "a picture shows at most 10,000 images"),
        (["--interpolate", "2000"], "--interpolate 2000 --columns 10: a picture shows at most"),
        (["--interpolate", "2", "--count", "5"], "--count: with --interpolate ROWS"),
        (["--checkpoint", "3"], "expected best, newest or a step that"),
        (["--checkpoint", "9" * 30], "expected best, newest or a step that"),
    ],
)
def test_pictures_that_cannot_be_made_cost_one_line(
    words: list[str], message: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("sample", finished_run, "--out", tmp_path / "x.png", *words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.png").exists()


def test_a_run_that_cannot_be_read_is_not_blamed_on_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program("sample", "r" * 300, "--out", tmp_path / "x.png") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "--out" not in error and "rrr" in error
    (tmp_path / "file").touch()
    assert program("sample", "run", "--out", tmp_path / "file" / "x.png") == 2
    assert "--out" in capsys.readouterr().err.splitlines()[-1]


def test_a_zip_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_images(pieces(), tmp_path / "x.zip")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "y.zip").mkdir()
    with pytest.raises(UserError, match=r"y\.zip: a folder"):
        save_images(pieces(), tmp_path / "y.zip")


def test_a_milestone_is_a_step_that_a_run_keeps(run: Path) -> None:
    (run / "milestones").mkdir()
    shutil.move(run / "checkpoints" / "step-00000002", run / "milestones" / "step-00000002")
    assert load_generator(run, checkpoint=2).folder == run / "milestones" / "step-00000002"
    assert load_generator(run, checkpoint="4").folder == run / "checkpoints" / "step-00000004"
