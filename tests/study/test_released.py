"""The authors' files: read safely, mapped onto our networks, and refused when they are anything else."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from study.config import load_study_config
from study.released import build_released, read_released
from tests.study.common import ROOT, study

CONFIG = ROOT / "configs" / "study" / "mnist_cnn3.yaml"
# Convolutions: maps, kernel, stride, padding, whether 2x2 maximum pooling follows. Then the width of the dense layer.
NETWORKS = {
    "cnn3": (1, [(16, 5, 1, 2, False), (32, 3, 1, 2, False), (32, 4, 2, 2, False)], 8192),
    "vgg7": (3, [(m, 3, 1, int(m < 256), p) for m, p in zip((32, 32, 64, 64, 128, 256), (0, 1, 0, 1, 1, 1), strict=True)], 256),
}
STORED = {  # accuracies in percent that the authors' files state
    "BNconv_0.001": 98.75, "BNconv_0.0001": 98.56, "SNconv_0.001": 89.07, "SNconv_0.0001": 91.22, "MSNconv_0.001": 97.60,
    "MSNconv_0.0001": 97.89,
}  # fmt: skip


def made(norm: str, model: str = "cnn3") -> dict[str, Any]:
    """Return the content of a file in the authors' format, with random weights. VGG-7's dense layer is a plain one."""
    draw = torch.Generator().manual_seed(1)
    net: dict[str, Tensor] = {}
    before, convolutions, width = NETWORKS[model]
    shapes = []
    for maps, kernel, *_ in convolutions:
        shapes.append((maps, before, kernel, kernel))
        before = maps
    place = 0
    for shape in [*shapes, (10, width)]:
        name = "fc" if len(shape) == 2 else f"main.{place}"
        weight = torch.randn(shape, generator=draw)
        if norm != "batch" and (len(shape) == 4 or model == "cnn3"):
            weight = weight / torch.linalg.matrix_norm(weight.flatten(1), 2)
            net[f"{name}.renorm"] = torch.ones(1, 1)
        net[f"{name}.weight"], net[f"{name}.bias"] = weight, torch.randn(shape[0], generator=draw)
        place += 2
        if norm != "spectral" and len(shape) == 4:
            own = {key: torch.rand(shape[0], generator=draw) + 0.5 for key in ("weight", "bias", "running_mean", "running_var")}
            net |= {f"main.{place - 1}.{key}": value for key, value in own.items()}
            net[f"main.{place - 1}.num_batches_tracked"] = torch.tensor(5)
            place += 1
    return {"net": net, "acc": 12.5, "epoch": 3}


def logits(net: dict[str, Tensor], norm: str, x: Tensor, model: str = "cnn3") -> Tensor:
    """Return what the authors' network computes in evaluation mode, by the definitions of its parts."""
    _, convolutions, _ = NETWORKS[model]
    layers = [key.removesuffix(".weight") for key in net if key.endswith(".weight") and net[key].dim() == 4]
    for name, (_, _, stride, padding, pool) in zip(layers, convolutions, strict=True):
        x = F.conv2d(x, net[f"{name}.weight"], net[f"{name}.bias"], stride, padding)
        if norm != "spectral":
            own = f"main.{int(name.rpartition('.')[2]) + 1}"
            gain, shift, mean, variance = (
                net[f"{own}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias", "running_mean", "running_var")
            )
            x = gain * (x - mean) / ((variance + 1e-5).sqrt() if norm == "batch" else 1) + shift
        x = F.relu(x) if (model, norm) == ("vgg7", "batch") else F.leaky_relu(x, 0.1)
        x = F.max_pool2d(x, 2) if pool else x
    return x.flatten(1) @ net["fc.weight"].T + net["fc.bias"]


def write(path: Path, content: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)  # the format of the authors' files
    return path


@pytest.mark.parametrize("norm", ["batch", "spectral", "mean_spectral"])
@pytest.mark.parametrize("ending", ["", "_projected"])
@pytest.mark.parametrize(("model", "config"), [("cnn3", "mnist_cnn3"), ("vgg7", "svhn_vgg7")])
def test_a_mapped_network_computes_what_the_authors_does(model: str, config: str, norm: str, ending: str, tmp_path: Path) -> None:
    content = made(norm, model)
    released = read_released(write(tmp_path / "a.t7", content))
    assert (released.norm, released.accuracy, released.epoch) == (norm, 12.5, 3)
    settings = load_study_config(ROOT / "configs" / "study" / f"{config}.yaml")
    network = build_released(released, settings, norm if norm == "batch" else norm + ending, 10)
    size = settings.data.image_size
    x = torch.randn(3, NETWORKS[model][0], size, size, generator=torch.Generator().manual_seed(0))
    expected = logits(content["net"], norm, x, model)
    assert float((network(x) - expected).norm()) < 1e-3 * float(expected.norm())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for index in range(20):
        (tmp_path / "images" / str(index % 10)).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / str(index % 10) / f"{index}.png")
    return tmp_path / "images"


def test_the_accuracy_is_printed_beside_the_stored_one(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = made("spectral")
    write(tmp_path / "a.t7", content)
    assert study("evaluate", str(tmp_path / "a.t7"), "--config", str(CONFIG), str(images)) == 0
    told = capsys.readouterr().out
    files = sorted(images.rglob("*.png"), key=lambda path: path.relative_to(images).as_posix())
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in files])[:, None]).float()
    chosen = logits(content["net"], "spectral", (pixels / 255 - 0.4914) / 0.2023).argmax(1).tolist()
    correct = sum(own == int(path.parent.name) for own, path in zip(chosen, files, strict=True))
    assert "stored           12.50% (epoch 3" in told
    assert f"({correct} of 20 images" in told
    assert "1.00000 to 1.00000" in told
    weights = [tensor.flatten(1) for name, tensor in content["net"].items() if name.endswith("weight")]
    ranks = [float((weight.norm() / torch.linalg.matrix_norm(weight, 2)) ** 2) for weight in weights]
    assert f"stable rank by layer      {ranks[0]:.1f} of 16, {ranks[1]:.1f} of 32, " in told


def test_the_gain_of_msn_is_printed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = made("mean_spectral")
    write(tmp_path / "a.t7", content)
    assert study("evaluate", str(tmp_path / "a.t7"), "--config", str(CONFIG), str(images)) == 0
    norms = [name.removesuffix("running_mean") + "weight" for name in content["net"] if name.endswith("running_mean")]
    means = ", ".join(f"{float(content['net'][name].abs().mean()):.1f}" for name in norms)
    assert f"mean gain by norm         {means} (1: none)" in capsys.readouterr().out


@pytest.mark.slow
def test_released_files_have_their_stored_accuracies(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data_folder.parent / "authors"
    if not folder.is_dir():
        pytest.skip("no authors/ beside MSNGAN_DATA: the six files that the paper's authors released")
    for name, accuracy in STORED.items():
        words = [str(folder / f"{name}_MNIST.t7"), "--config", str(CONFIG), str(data_folder / "mnist-test.zip")]
        assert study("evaluate", *words) == 0
        told = capsys.readouterr().out
        assert f"stored           {accuracy:.2f}%" in told
        assert f"here    {accuracy:.2f}% (" in told


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_any_other_file_gets_one_line_exit_code_2_and_runs_no_code(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, trap = made("spectral"), tmp_path / "ran"
    whole = write(tmp_path / "whole.t7", good).read_bytes()
    (tmp_path / "short.t7").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "code.t7").write_bytes(pickle.dumps({"net": Trap(trap), "acc": 1.0, "epoch": 1}))
    (tmp_path / "text.t7").write_text("no weights")
    (tmp_path / "long.t7").write_bytes(b"0" * (2**24 + 1))
    write(tmp_path / "saved_code.t7", {"net": {"fc.weight": Trap(trap)}, "acc": 1.0, "epoch": 1})
    write(tmp_path / "list.t7", [1, 2])
    write(tmp_path / "no_accuracy.t7", {"net": good["net"], "acc": "high", "epoch": 1})
    write(tmp_path / "names.t7", {**good, "net": {**good["net"], "fc.gamma\n": torch.ones(1)}})
    write(tmp_path / "values.t7", {**good, "net": {**good["net"], "fc.weight": good["net"]["fc.weight"] * float("nan")}})
    write(tmp_path / "half.t7", {**good, "net": {k: v for k, v in good["net"].items() if k != "fc.bias"}})
    write(tmp_path / "fewer.t7", {**good, "net": {k: v for k, v in good["net"].items() if not k.startswith("main.2")}})
    write(tmp_path / "wider.t7", {**good, "net": {**good["net"], "main.0.weight": torch.ones(8, 1, 5, 5)}})
    write(tmp_path / "empty.t7", {**good, "net": {}})
    colour = torch.ones(32, 3, 3, 3)
    write(tmp_path / "colour.t7", {**good, "net": {**good["net"], "main.0.weight": colour}})
    cases = {
        "nowhere": "No such file", "short": "not a released", "code": "no code in it", "saved_code": "no code in it",
        "text": "no code in it", "long": "at most 16,777,216", "list": "no dictionary", "no_accuracy": "acc and epoch",
        "names": "unknown",
        "values": "finite", "half": "no bias", "fewer": "3 layers", "wider": "[8, 1, 5, 5]", "empty": "no convolution",
        "colour": "[32, 3, 3, 3]",
    }  # fmt: skip
    for name, expected in cases.items():
        words = ["evaluate", str(tmp_path / f"{name}.t7"), "--config", str(CONFIG), str(images)]
        assert study(*words) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and expected in line, (name, line)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--norm", "batch", "IMAGES"], "norm spectral, not --norm batch"),
        (["--norm", "mean_spectral_projected", "IMAGES"], "norm spectral, not"),
        (["IMAGES", "model.name=vgg7", "data.image_size=32"], "not a VGG-7 (4 layers and 0 norms, expected 7"),
        (["IMAGES", "model.name=densenet_bc"], "cnn3 and vgg7"),
        (["IMAGES", "data.image_size=32"], "[10, 8192]"),
        (["nowhere.zip"], "nowhere.zip"),
        (["digits"], "test split"),
        (["IMAGES/0"], "no classes"),
    ],
)
def test_a_mistake_of_the_command_gets_one_line(
    words: list[str], expected: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.t7", made("spectral"))
    given = [word.replace("IMAGES", str(images)) for word in words]
    assert study("evaluate", str(tmp_path / "a.t7"), "--config", str(CONFIG), *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line
