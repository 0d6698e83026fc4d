"""Nearest training images: planted copies are found at their places, by pixels and by an extractor."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import eval.__main__ as evaluation
import gan.__main__
from gan import load_generator
from gan.config import GanConfig
from gan.data.datasets import load_images
from gan.inference.neighbours import find_neighbours, nearest, training_images
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig
from tests.small import scale_down

PLANTED = [1700, 3, 3, 44]


def program(*arguments: object) -> int:
    return cli.run(lambda: gan.__main__.main([str(argument) for argument in arguments]))


@dataclass
class Copier:
    """A "generator" that returns training images with noise."""

    config: GanConfig
    folder = Path("exported")

    def sample(self, count: int, seed: int = 0) -> Tensor:
        images = load_images(self.config.data)
        noise = torch.randint(-8, 9, (count, 1, 32, 32), generator=torch.Generator().manual_seed(seed))
        return (torch.stack([images[index] for index in PLANTED]) + noise).clamp(0, 255).to(torch.uint8)


def test_planted_copies_are_found_at_the_right_indices() -> None:
    copier = Copier(GanConfig(data=DataConfig(name="digits", channels=1)))
    found = find_neighbours(copier, training_images(copier, None, 3), count=4, neighbours=3)  # type: ignore[arg-type]
    assert found.indices[:, 0].tolist() == PLANTED
    assert (found.distances[:, 0] < 0.3 * found.distances[:, 1]).all(), "other digits are much farther than the copies"
    assert torch.equal(found.images[1, 0], load_images(copier.config.data)[3])
    assert (np.diff(found.distances, axis=1) >= 0).all()


def test_neighbours_do_not_depend_on_how_images_are_parted() -> None:
    draw = np.random.default_rng(0)
    samples, images = draw.integers(0, 5, (6, 3)), draw.integers(0, 5, (40, 3))  # with many ties
    distances = np.linalg.norm(samples[:, None] - images, axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :4]
    for size in (1, 7, 40):
        indices, found = nearest(samples, (images[start : start + size] for start in range(0, 40, size)), 4)
        assert np.allclose(found, np.take_along_axis(distances, expected, 1))
        if size == 1:  # within a part, scikit-learn chooses among images at equal distances
            assert np.array_equal(indices, expected)


def test_the_picture_has_a_row_for_each_sample_and_the_distances_are_printed(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "near.png"
    assert program("sample", finished_run, "--out", out, "--neighbours", 2, "--count", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["space"] == "pixels"
    images, samples = load_images(DataConfig(name="digits")), load_generator(finished_run).sample(3)
    assert found["distances"][1][0] == pytest.approx(
        float((samples[1] / 255 - images[found["indices"][1][0]] / 255).norm()), rel=1e-5
    )
    shown = np.array(Image.open(out))
    assert shown.shape == (3 * 34 + 2, 4 * 34 + 2)
    cells = [[shown[2 + 34 * row : 34 + 34 * row, 2 + 34 * column : 34 + 34 * column] for column in range(4)] for row in range(3)]
    for row in range(3):
        assert np.array_equal(cells[row][0], samples[row, 0])
        assert (cells[row][1] == 255).all()
        for column, index in enumerate(found["indices"][row]):
            assert np.array_equal(cells[row][2 + column], images[index][0])
    assert program("sample", finished_run, "--out", out, "--neighbours", 2, "--count", 3, "--force") == 0
    text = capsys.readouterr().out
    assert "A diagnostic, not a proof" in text
    assert f"sample 2: {found['indices'][2][0]} ({found['distances'][2][0]:.3f})" in text


def test_neighbours_by_an_extractor_are_those_of_the_command_of_eval(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)

    def in_this_process(words: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        assert words[:3] == [sys.executable, "-m", "eval"]
        return subprocess.CompletedProcess(words, cli.run(lambda: evaluation.main(words[3:])))

    monkeypatch.setattr(subprocess, "run", in_this_process)
    options = ("--neighbours", 2, "--space", "efficientnet-lite0", "--count", 3, "--weights", "raw", "--json", "--force")
    assert program("sample", finished_run, "--out", tmp_path / "near.png", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["space"] == "efficientnet-lite0"
    images = load_images(DataConfig(name="digits"))

    def features(pixels: Tensor) -> Tensor:  # those of the small extractor, whose features are pixels of a thumbnail
        return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1)

    training = features(torch.stack([images[index] for index in range(len(images))]))
    distances = torch.cdist(features(load_generator(finished_run, "raw").sample(3)).double(), training.double())
    # The extractor repeats grey in three channels.
    assert np.allclose(found["distances"], 3**0.5 * distances.sort(1)[0][:, :2], atol=1e-5)
    assert Image.open(tmp_path / "near.png").size == (4 * 34 + 2, 3 * 34 + 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--space", "pixels"], "are options of --neighbours"),
        (["--neighbours", "0"], "expected a whole number from 1 up"),
        (["--neighbours", "5", "--single"], "not allowed with argument"),
        (["--neighbours", "5", "--space", "colours"], "invalid choice: 'colours'"),
        (["--neighbours", "1798", "--count", "1"], "there are 1,797 training images"),
        (["--neighbours", "5", "--count", "5000"], "a picture shows at most 10,000 images"),
        (["--neighbours", "5", "--columns", "3"], "a row is a sample and its neighbours"),
        (["--neighbours", "5", "--out", "near.jpg"], "samples and their neighbours are a .png"),
    ],
)
def test_mistakes_with_neighbours_are_one_line(
    options: list[str],
    expected: str,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = program("sample", finished_run, "--out", tmp_path / "near.png", *options)
    except SystemExit as stopped:  # argparse
        code = stopped.code
    assert code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg")]


def test_images_that_have_moved_are_told_and_can_be_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "0.png")
    copier = Copier(GanConfig(data=DataConfig(name="folder", path=str(tmp_path / "gone"), channels=1)))
    with pytest.raises(UserError, match="gone: no such folder"):
        training_images(copier, None, 1)  # type: ignore[arg-type]
    assert len(training_images(copier, str(tmp_path), 1)) == 1  # type: ignore[arg-type]


def test_the_command_of_eval_refuses_another_ending(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(lambda: evaluation.main(["neighbours", str(finished_run), "--out", str(tmp_path / "near.gif")])) == 2
    assert "Give a name that ends in .png" in capsys.readouterr().err
