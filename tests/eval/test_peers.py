"""Our scores against pytorch-fid's and torch-fidelity's own programs, on the same files and the same weights."""

import json
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import eval.__main__ as program
from benchmarks import peers
from eval.extractors import load_extractor
from eval.features import extract
from eval.image_sets import StoredImages, parse_spec
from gan.data.datasets import load_images
from gan.utils import cli


@pytest.fixture(scope="module")
def two_sets(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """200 images each of CIFAR-10's test split, of different classes, as PNG files."""
    folder = tmp_path_factory.mktemp("images")
    with zipfile.ZipFile(data_folder / "cifar10-test.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png", ".jpeg")))
        for place, chosen in (("a", names[:4000:20]), ("b", names[5000:9000:20])):
            (folder / place).mkdir()
            assert len(chosen) == 200
            for index, name in enumerate(chosen):
                with archive.open(name) as file:
                    Image.open(file).save(folder / place / f"{index:04d}.png")
    return folder / "a", folder / "b"


def ours(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert cli.run(lambda: program.main([str(a) for a in arguments])) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_features_of_files_are_those_of_pytorch_fids_own_reader_and_network(inception_weights: Path, tmp_path: Path) -> None:
    import pytorch_fid.inception
    from pytorch_fid.fid_score import get_activations

    coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    for index, pixels in enumerate(coarse):
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(tmp_path / f"{index}.png")
    state = torch.load(inception_weights, weights_only=True)
    with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state):
        network = pytorch_fid.inception.InceptionV3([3])
    theirs = get_activations(sorted(map(str, tmp_path.glob("*.png"))), network, 4, 2048, "cpu", 0)
    images = StoredImages(load_images(parse_spec(str(tmp_path), size=40, channels=3)))
    mine = extract(images, load_extractor("inception-pytorch-fid", inception_weights), use_cache=False)
    assert mine is not None
    assert np.abs(mine.values - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert np.std(theirs, axis=0).max() > 1e-2 * np.abs(theirs).max(), "images are told apart"


# Their programs take a minute each for the root of a matrix of 2,048 x 2,048.


@pytest.mark.faults
def test_fid_is_pytorch_fids(
    two_sets: tuple[Path, Path], inception_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two_sets
    mine = ours(capsys, "images", a, b, "--extractor", "inception-pytorch-fid", "--weights", inception_weights, "--json")
    theirs, _ = peers.pytorch_fid(a, b, inception_weights, tmp_path, peers.KEEP_BLOCKS, ["--num-workers", 0])
    print(f"pytorch-fid: {theirs}, ours: {mine['fid']}")
    assert theirs > 0.1
    assert mine["fid"] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.faults
def test_fid_is_and_kid_are_torch_fidelitys(
    two_sets: tuple[Path, Path], inception_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two_sets
    mine = ours(capsys, "images", a, b, "--weights", inception_weights, "--kid-size", 100, "--json")
    theirs, _ = peers.torch_fidelity(
        a, b, inception_weights, tmp_path / "theirs", kid_size=100, environment=peers.KEEP_BLOCKS, options=["--save-cpu-ram"]
    )
    print(f"torch-fidelity: {theirs}, ours: {mine}")
    score, kid = mine["inception_score"], mine["kid"]
    assert isinstance(score, dict)
    assert isinstance(kid, dict)
    assert theirs["inception_score_mean"] > 1.05, "the weights tell images apart, or the comparison means nothing"
    assert score["mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert score["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-4)
    assert mine["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert kid["mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert kid["std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)
