"""Users' mistakes: one line, exit code 2, nothing lost or overwritten."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gan.__main__
from gan.utils import cli
from tests.conftest import command

Tiny = Callable[..., list[str]]


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.fixture
def world(tmp_path: Path, finished_run: Path) -> Path:
    """A folder with everything that a mistake can be made with."""
    shutil.copytree(finished_run, tmp_path / "runs" / "old")
    for name in ("good", "corrupt", "renamed", "empty", "truncated"):
        (tmp_path / name).mkdir()
        if name != "empty":
            for index in range(3):
                picture().save(tmp_path / name / f"{index}.png")
    corrupt = bytearray((tmp_path / "corrupt" / "1.png").read_bytes())
    corrupt[1000:1100] = bytes(100)
    (tmp_path / "corrupt" / "1.png").write_bytes(corrupt)
    (tmp_path / "renamed" / "1.png").write_text("not an image")
    truncated = tmp_path / "truncated" / "1.png"
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    (tmp_path / "not.zip").write_text("not a zip")
    with zipfile.ZipFile(tmp_path / "corrupt.zip", "w") as archive:
        archive.writestr("a/1.png", "not an image")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "broken.yaml").write_text("model: {generator: [\n")
    (tmp_path / "unknown.yaml").write_text("model: {widht: 3}\n")
    (tmp_path / "foreign.yaml").write_text("version: 3\nservices: {web: {image: nginx}}\ntraining: {steps: 3}\n")
    (tmp_path / "dotted.yaml").write_text("training.steps: 3\n")
    (tmp_path / "twice.yaml").write_text("seed: 3\nseed: 4\n")
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "runs" / "foreign" / "thesis.txt").write_text("years of work")
    (tmp_path / "runs" / "file").write_text("a file")
    for name in ("ruined", "other_images"):
        shutil.copytree(finished_run, tmp_path / "runs" / name)
    for checkpoint in (tmp_path / "runs" / "ruined" / "checkpoints").iterdir():
        (checkpoint / "optimizers.pt").write_bytes(b"")
    for manifest in (tmp_path / "runs" / "other_images").rglob("checkpoint.json"):
        manifest.write_text(manifest.read_text().replace('"data": "', '"data": "0'))
        seal = hashlib.sha256(manifest.read_bytes()).hexdigest()
        manifest.with_name("checkpoint.sha256").write_text(f"{seal}  checkpoint.json\n")
    return tmp_path


def state(folder: Path) -> dict[str, str]:
    """Every file's content, and every folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


AGAIN = ["--config", "{}/runs/old/config.yaml", "training.steps=9"]
FOLDER = ["data.name=folder", "data.channels=null"]
# Arguments ({} is the world's folder) and words of the one line that must come.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "a critic whose gain has no bound": (["loss.name=wgan", "model.discriminator.gain=true"], "a learned gain leaves"),
    "unknown key": (["training.step=3"], "training.step is not a setting. Did you mean training.steps or"),
    "unknown section": (["trainer.steps=3"], "is not a setting"),
    "wrong type": (["training.steps=many"], "training.steps=many: expected a whole number."),
    "a fraction of a step": (["training.steps=1.5"], "training.steps=1.5: expected a whole number."),
    "a number in another notation": (["training.steps=1e3"], "training.steps=1e3: expected a whole number. Write 1000."),
    "an octal number": (["training.steps=010"], "training.steps=010: expected a whole number."),
    "a sexagesimal number": (["training.steps=1:30"], "expected a whole number."),
    "a number with underscores": (["training.batch_size=1_000"], "expected a whole number. Write 1000."),
    "a hexadecimal rate": (["optimizer.d_lr=0x1"], "expected a number."),
    "a number beyond floats": (["health.max_grad_norm=1e999"], "expected a number."),
    "no text": (["run.name="], "run.name=: expected a text."),
    "a section's name": (["model=big"], "model=big: model is a section. Set one of model.latent_dim"),
    "a setting without its section": (["steps=10"], "steps is not a setting. Did you mean training.steps?"),
    "a word for a switch": (["data.flip=sometimes"], "expected true or false"),
    "a classifier's configuration": (["--config", "configs/study/digits_cnn3.yaml"], "python -m study train --config"),
    "another program's configuration": (["--config", "{}/foreign.yaml"], "another program: most of its keys are no settings"),
    "a key with a dot in a file": (["--config", "{}/dotted.yaml"], "is written in a file as training: {steps: ...}"),
    "a key twice": (["--config", "{}/twice.yaml"], "seed is given twice"),
    "no such home": (["data.name=folder", "data.path=~nobody9/faces"], "~nobody9 has no home folder here"),
    "unknown choice": (["loss.name=lsgan"], "expected one of"),
    "unknown data set": (["data.name=imagenet"], "expected one of"),
    "unknown precision": (["training.precision=fp8"], "expected one of"),
    "no value": (["training.steps"], "expected key=value"),
    "null": (["training.steps=null"], "training.steps"),
    "negative seed": (["seed=-1"], "must not be negative"),
    "no configuration": (["--config", "{}/none.yaml"], "No such file"),
    "configuration is a folder": (["--config", "{}"], "a folder, not a file of a configuration"),
    "configuration is a list": (["--config", "{}/list.yaml"], "list.yaml: a list, where sections and settings are expected"),
    "configuration is not YAML": (["--config", "{}/broken.yaml"], "not YAML"),
    "unknown key in a configuration": (["--config", "{}/unknown.yaml"], "unknown.yaml: model.widht is not a setting"),
    "image size": (["data.image_size=30"], "must be a multiple of 8 from 32 up (the generator doubles"),
    "batch size 0": (["training.batch_size=0"], "must be at least 1"),
    "batch of one with msn": (["training.batch_size=1"], "needs at least 2"),
    "accumulation": (["training.accumulation=3"], "must divide training.batch_size=8"),
    "wgan without a bound": (["loss.name=wgan", "model.discriminator.norm=batch"], "set loss.clip=0.01"),
    "clipping another loss": (["loss.clip=0.01"], "only wgan clips"),
    "name is a path": (["run.name=a/b"], "must be a folder's name"),
    "folder without a path": (["data.name=folder"], "needs data.path"),
    "missing folder": ([*FOLDER, "data.path={}/none"], "no such folder or .zip"),
    "empty folder": ([*FOLDER, "data.path={}/empty"], "holds no images"),
    "corrupt image": ([*FOLDER, "data.path={}/corrupt"], "corrupt/1.png: a damaged image"),
    "corrupt image while streaming": ([*FOLDER, "data.path={}/corrupt", "data.memory_gb=0"], "corrupt/1.png: a damaged image"),
    "text renamed to png": ([*FOLDER, "data.path={}/renamed"], "renamed/1.png: not an image"),
    "truncated image": ([*FOLDER, "data.path={}/truncated"], "truncated/1.png: a damaged image"),
    "not a zip": ([*FOLDER, "data.path={}/not.zip"], "not a .zip archive"),
    "corrupt image in a zip": ([*FOLDER, "data.path={}/corrupt.zip"], "corrupt.zip: a/1.png: not an image"),
    "split of the digits": (["data.split=test"], "digits has no splits"),
    "another configuration": (["run.name=old", "seed=5"], "holds a run with other settings (seed: 0 -> 5"),
    "another folder's content": (["run.name=foreign"], "is not a run"),
    "run's folder is a file": (["run.name=file"], "file"),
    "no checkpoint left": ([*AGAIN, "run.name=ruined"], "no usable checkpoint left"),
    "other images": ([*AGAIN, "run.name=other_images"], "its images are not those"),
    "no write permission": (["run.dir=/proc/nowhere"], "Set run.dir to a folder that can"),
    "weights that are not there": (["evaluation.every=5", "evaluation.weights={}/none.pth"], "none.pth: cannot be read"),
    "reference that is not there": (["evaluation.every=5", "evaluation.reference={}/none"], "neither a data set"),
    "too few images for the protocol": (
        ["evaluation.every=5", "evaluation.protocol=sngan", "evaluation.reference={}/good"],
        "compares with 10,000 real images",
    ),
    "unknown protocol": (["evaluation.protocol=fast"], "evaluation.protocol"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(
    mistake: str, world: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, words = MISTAKES[mistake]
    arguments = [argument.replace("{}", str(world)) for argument in given]
    before = state(world)
    if "old" in "".join(given) or "--config" in given:
        arguments = [f"run.dir={world / 'runs'}", *arguments]
    else:
        arguments = tiny("training.steps=2", *arguments)
    capsys.readouterr()
    assert command(arguments) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == ""
    assert [line for line in lines if line.startswith("error: ")] == [lines[-1]], shown.err
    if "streaming" not in mistake:  # found in the middle of a run, after the line that says where it runs
        assert len(lines) == 1, shown.err
        assert state(world) == before
    assert words in lines[0] or words in lines[-1]


GAN_MISTAKES: dict[str, tuple[list[str], str]] = {
    "one checkpoint of an animation": (
        ["sample", "{}/runs/old", "--out", "{}/o.gif", "--animate", "--checkpoint", "best"], "--checkpoint best"
    ),
    "columns of single images": (["sample", "{}/runs/old", "--out", "{}/o", "--single", "--columns", "3"], "--columns"),
    "no such run": (["sample", "{}/none", "--out", "{}/a.png"], "no such folder"),
    "not a run": (["sample", "{}/good", "--out", "{}/a.png"], "neither a checkpoint nor a run"),
    "ruined weights": (["sample", "{}/bent", "--out", "{}/a.png"], "has been changed or damaged"),
    "grid into a gif": (["sample", "{}/runs/old", "--out", "{}/a.gif"], "a grid is a .png"),
    "animation into a png": (["sample", "{}/runs/old", "--animate", "--out", "{}/a.png"], "an animation is a .gif"),
    "animation of no checkpoints": (["sample", "{}/good", "--animate", "checkpoints", "--out", "{}/a.gif"], "at least two"),
    "animation on an unknown device": (
        ["sample", "{}/runs/old", "--animate", "checkpoints", "--device", "tpu9", "--out", "{}/a.gif"], "device 'tpu9'"),
    "animation of other samples": (["sample", "{}/runs/old", "--animate", "--seed", "9", "--out", "{}/a.gif"], "other samples"),
    "seed is no number": (["sample", "{}/runs/old", "--seed", "abc", "--out", "{}/a.png"], "'abc': expected a whole"),
    "no images at all": (["sample", "{}/runs/old", "--count", "0", "--out", "{}/a.png"], "expected a whole number from 1 up"),
    "unknown option": (["sample", "{}/runs/old", "--sed", "9", "--out", "{}/a.png"], "--help"),
    "picture in place of a folder": (["sample", "{}/runs/old", "--out", "{}/folder.png"], "cannot be written (Is a directory)"),
    "all checkpoints ruined": (["sample", "{}/runs/bent", "--out", "{}/a.png"], "no usable checkpoint left"),
    "animation of an empty run": (["sample", "{}/good", "--animate", "--out", "{}/a.gif"], "at least two"),
    "unknown device": (["sample", "{}/runs/old", "--device", "tpu9", "--out", "{}/a.png"], "--device: device 'tpu9'"),
    "single images over others": (["sample", "{}/runs/old", "--single", "--out", "{}/good"], "not empty"),
    "export over files": (["export", "{}/runs/old", "--out", "{}/good"], "not empty"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", GAN_MISTAKES)
def test_a_mistake_in_sampling_gets_one_line_and_exit_code_2(
    mistake: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "runs" / "old" / "checkpoints" / "step-00000004", world / "bent")
    weights = world / "bent" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (world / "folder.png").mkdir()
    shutil.copytree(world / "runs" / "old", world / "runs" / "bent")
    for weights in (world / "runs" / "bent").rglob("ema.safetensors"):
        weights.write_bytes(b"")
    before = state(world)
    given, words = GAN_MISTAKES[mistake]
    capsys.readouterr()
    assert cli.run(lambda: gan.__main__.main([argument.replace("{}", str(world)) for argument in given])) == 2
    *took, line = capsys.readouterr().err.splitlines()
    assert all("step 4, ema weights" in other for other in took[:1])
    assert len(took) <= 1
    assert line.startswith("error: ")
    assert words in line
    assert state(world) == before


@pytest.mark.slow
def test_a_mistake_at_the_shell_has_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "train.py", "training.step=3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: training.step is not a setting. Did you mean training.steps or training.d_steps?\n"


@pytest.mark.slow
def test_too_little_memory_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))

    words = [*tiny("training.steps=1", "model.generator.channels=4096")]  # 14 GB of weights
    done = subprocess.run(
        [sys.executable, "train.py", *words], capture_output=True, text=True, check=False, preexec_fn=limit, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: not enough memory (")


def test_wandb_online_without_a_key_is_refused(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert command(tiny("tracking.wandb=online")) == 2
    assert "no key for wandb" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    assert command(tiny("training.steps=2")) == 2
    assert "cannot be written to (Permission denied)" in capsys.readouterr().err
