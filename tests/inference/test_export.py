"""Exports: a model card for a stranger, and an ONNX file that computes what the generator does."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import eval.__main__
import gan.__main__
from gan import load_generator
from gan.config import GanConfig
from gan.inference import export as exports
from gan.models.build import build_generator
from gan.runs import checkpoints, scores
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.settings import set_value, to_yaml
from tests.small import scale_down

NORMS = {
    "batch": ["batch", "spectral", "mean_spectral", "none", "spectral"],
    "spectral_projected": ["mean_spectral_projected", "batch", "spectral_projected", "mean_spectral", "spectral_projected"],
}


def program(*arguments: object) -> int:
    return cli.run(lambda: gan.__main__.main([str(argument) for argument in arguments]))


def card_of(run: Path, out: Path, *options: str) -> str:
    assert program("export", run, "--out", out, *options) == 0
    return (out / "README.md").read_text()


def trained_by_hand(folder: Path, norm: str) -> Path:
    """An export of a generator with several norms, whose statistics and gains are none of the initial ones."""
    config = GanConfig()
    settings = {"data.channels": 3, "model.latent_dim": 8, "model.generator.channels": 4, "model.generator.norm": norm}
    for key, value in (settings | {"model.generator.layer_norms": NORMS[norm], "model.generator.gain": True}).items():
        config = set_value(config, key, value)
    torch.manual_seed(0)
    network = build_generator(config).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for _ in range(5):
            network(torch.randn(16, 8) + 0.5)
    checkpoints.write_weights(folder, 3, {"ema": network.state_dict()}, to_yaml(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_the_onnx_file_computes_what_the_generator_does_for_any_number_of_images(
    norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    text = card_of(trained_by_hand(tmp_path / "trained", norm), tmp_path / "exported", "--onnx")
    assert capsys.readouterr().out == ""
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "generator.onnx")
    generator = load_generator(tmp_path / "trained")
    for count in (1, 2, 7):
        z = torch.randn(count, 8)
        (images,) = session.run(None, {"z": z.numpy()})
        ours = generator.network(z).numpy()
        assert images.shape == (count, 3, 32, 32)
        assert np.abs(images - ours).max() < 1e-4
        assert ours.std() > 0.1, "nothing to tell apart"
    content = (tmp_path / "exported" / "generator.onnx").read_bytes()
    assert not re.search(rb"\.py\b|File \"", content), "a path of the author's machine"
    monkeypatch.chdir(tmp_path / "exported")
    names: dict[str, np.ndarray] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code.replace("FOLDER", "."), names)
    assert names["images"].shape == names["pixels"].shape == (16, 3, 32, 32)
    assert names["pixels"].dtype == np.uint8
    assert len(np.unique(names["pixels"])) > 100


def test_the_card_shows_the_scores_of_its_weights_with_protocol_and_floor(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_down(monkeypatch)
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
    for weights in ("raw", "ema"):
        words = ["score", str(run), "--protocol", "quick", "--extractor", "efficientnet-lite0", "--weights", weights]
        assert cli.run(lambda words=words: eval.__main__.main(words)) == 0
    raw, ema = scores.read(run)
    text = card_of(run, tmp_path / "exported", "--license", "cc-by-4.0")
    (row,) = (line for line in text.splitlines() if line.startswith("| Frechet distance |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == f"{ema['scores']['fid']['mean']:.2f}"
    assert cells[2] == f"{ema['floor']['fid']['mean']:.2f}"
    assert cells[3:] == ["`quick`, 1 x 40 images", "`efficientnet-lite0, weights 0`", "`digits:train`"]
    assert str(raw["scores"]["fid"]["mean"]) not in text
    about = ModelCard(text).data
    assert (about.license, about.library_name) == ("cc-by-4.0", "msngan")
    assert about.eval_results[0].metric_value == ema["scores"]["fid"]["mean"]
    assert "`digits:train`, 1 x 32 x 32" in text
    assert "4 generator updates" in text


def test_a_card_without_scores_says_how_to_make_one(finished_run: Path, tmp_path: Path) -> None:
    text = card_of(finished_run, tmp_path / "exported")
    assert "None is recorded for these weights. `python -m eval score`" in text
    assert ModelCard(text).data.license is None
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(code.replace("FOLDER", str(tmp_path / "exported")), names)
    assert torch.equal(names["images"], load_generator(finished_run).sample(64))


def test_a_strangers_names_stay_text_in_the_card(run: Path, tmp_path: Path) -> None:
    hostile = "a`|<img src=x onerror=1>: [x](javascript:1) ---"
    newest = run / "checkpoints" / "step-00000004"
    config = set_value(load_generator(newest).config, "run.name", hostile)
    weights = {"ema": checkpoints.load_weights(newest, "ema")}
    checkpoints.write_weights(tmp_path / "strange", 4, weights, to_yaml(config))
    text = card_of(tmp_path / "strange", tmp_path / "exported")
    _, front, body = re.split(r"^---\n", text, flags=re.MULTILINE)
    assert yaml.safe_load(front)["library_name"] == "msngan"
    assert not [line for line in body.splitlines() if "<img" in line and not re.fullmatch(r"# `[^`]*`", line)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--onnx"], "--onnx: onnxscript is not installed. pip install 'msngan[onnx]', or leave --onnx out."),
        (["--license", "MIT License"], "--license 'MIT License': expected an identifier such as mit"),
    ],
)
def test_a_mistaken_export_is_one_line_and_writes_nothing(
    options: list[str], words: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(exports, "find_spec", lambda name: None)
    newest = finished_run / "checkpoints" / "step-00000004"
    assert program("export", newest, "--out", tmp_path / "exported", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_its_run_removed_after_loading_is_told(tmp_path: Path) -> None:
    folder = trained_by_hand(tmp_path / "checkpoint", "batch")
    generator = load_generator(folder)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="its run has removed it meanwhile"):
        exports.export(generator, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []
