"""Our scores against pytorch-fid's and torch-fidelity's own programs, on the same files and the same weights."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval.__main__ as program
from benchmarks import peers
from gan.utils import cli


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peers.random_inception_weights(tmp_path_factory.mktemp("weights") / "inception.pth")


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
def test_fid_is_pytorch_fids(
    two_sets: tuple[Path, Path], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two_sets
    mine = ours(capsys, "images", a, b, "--extractor", "inception-pytorch-fid", "--weights", weights, "--json")
    theirs, _ = peers.pytorch_fid(a, b, weights, tmp_path, peers.KEEP_BLOCKS, ["--num-workers", 0])
    print(f"pytorch-fid: {theirs}, ours: {mine['fid']}")
    assert theirs > 0.1
    assert mine["fid"] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_fid_is_and_kid_are_torch_fidelitys(
    two_sets: tuple[Path, Path], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two_sets
    mine = ours(capsys, "images", a, b, "--weights", weights, "--kid-size", 100, "--json")
    theirs, _ = peers.torch_fidelity(
        a, b, weights, tmp_path / "theirs", kid_size=100, environment=peers.KEEP_BLOCKS, options=["--save-cpu-ram"]
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


@pytest.mark.slow
def test_the_weights_are_what_was_given(weights: Path) -> None:
    assert len(torch.load(weights, weights_only=True)) == 566
