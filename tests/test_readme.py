"""Every command in a bash block of the README and of the pages in docs/ is run: here with small networks, or by .ci/run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan.utils import cli
from tests.conftest import TINY
from tests.small import scale_down
from tests.workers import PROGRAMS

ROOT = Path(__file__).parent.parent
TEXT = "\n".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = list(dict.fromkeys(line for block in BLOCKS for line in block.replace("\\\n    ", "").splitlines() if line.strip()))
CODE = list(dict.fromkeys(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)))
BY_CI = ("make train", "make test")
BY_TEST = ('make table2 SEEDS="0 1 2" STEPS=50000',)  # tests/eval/test_table2.py


@pytest.fixture
def checkout(tmp_path: Path, finished_run: Path) -> Path:
    """A folder that looks like a checkout in which `make train` has run."""
    for name in ("train.py", "configs", "gan", "eval", "study"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished_run, tmp_path / "runs" / "digits_msngan")
    (tmp_path / "PATH_TO_IMAGES").mkdir()
    for index in range(4):
        Image.fromarray(np.full((70, 80, 3), index, np.uint8)).save(tmp_path / "PATH_TO_IMAGES" / f"{index}.png")
    shutil.make_archive(str(tmp_path / "OTHER_IMAGES"), "zip", tmp_path / "PATH_TO_IMAGES")
    return tmp_path


def small(words: list[str]) -> list[str]:
    """The same command on a smaller scale: a few steps of a tiny network, and images that are here in place of CIFAR-10."""
    if "--dry-run" in words:
        return words
    words = [*words, *TINY]
    if "training.steps=1000" in words:  # of the run that the checkout holds at step 4
        return [*words, "training.steps=6"]
    if any("cifar10" in word for word in words):
        words += ["data.name=folder", "data.path=PATH_TO_IMAGES"]
    named = any(word.startswith("run.name=") for word in words)
    # The run that the checkout holds has its own settings; a new name keeps them apart.
    return [*words, "training.steps=2", *([] if named else ["run.name=small"])]


def run(words: list[str]) -> None:
    """Run a command of a program of ours in this process, with small networks and scores that take milliseconds."""
    assert words[0] == "python", f"not run by any test: {words}"
    if words[1] == "train.py":
        name, words = "train", small(words[2:])
    else:
        name, words = words[2], words[3:]
    if name == "study" and words[0] in ("train", "sweep"):
        words = [*words, "training.epochs=0.2", "data.train_images=200", "data.test_images=50"]
    if name == "study" and words[0] == "sweep":  # one run, since each is a process of its own
        words += ["--norms", "spectral", "--rates", "0.001", "--seeds", "0"]
    assert cli.run(lambda: PROGRAMS[name](words)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in (*BY_CI, *BY_TEST) and "accelerate launch" not in c])
def test_command_of_the_readme_runs(
    command: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    scale_down(monkeypatch)
    # Commands that report what a command further up has made.
    before = {"python -m eval table2": "python -m eval score", "python -m study tables": "python -m study train",
        "python -m study figures": "python -m study train"}  # fmt: skip
    for start, first in before.items():
        if command.startswith(start):
            run(shlex.split(next(other for other in COMMANDS if other.startswith(first))))
    run(shlex.split(command))
    output = capsys.readouterr()
    if "training.steps=1000" in command:
        assert "from step 4 to 6" in output.err
    if "train.py" in command and "--dry-run" in command:
        assert "discriminator:  2,937,665 parameters (3 x spectral, mean_spectral" in output.out


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if "accelerate launch" in c and "--num_processes 8" not in c])
def test_launch_of_the_readme_connects_its_processes(command: str, checkout: Path) -> None:
    """Of sixteen GPUs on two machines become two CPU processes, one for each machine. (On one machine: the next command.)"""
    words = shlex.split(command.removeprefix("ACCELERATE_USE_CPU=1 ").replace("MAIN_HOST", "127.0.0.1"))
    assert words[:2] == ["accelerate", "launch"]
    script = words.index("train.py")
    words = [sys.executable, "-m", "accelerate.commands.launch", *words[2 : script + 1], *small(words[script + 1 :])]
    words[words.index("--num_processes") + 1] = "2"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    launchers = []
    for machine in range(int(words[words.index("--num_machines") + 1])):
        if machine:
            words = [*words]
            words[words.index("--machine_rank") + 1] = str(machine)
        pipe = subprocess.PIPE
        launchers.append(subprocess.Popen(words, cwd=checkout, env=variables, stdout=pipe, stderr=pipe, text=True))
    for machine, launcher in enumerate(launchers):
        output, errors = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, errors
        # The launcher of the machine that ends last may find that of the first one gone, and logs that with a traceback.
        assert not [line for line in errors.splitlines() if "Traceback" in line and "torch/distributed/elastic" not in line]
        assert output.count("checkpoint:") == (machine == 0), "one process prints"
        assert machine or "2 processes on cpu" in errors
    (run,) = [folder for folder in (checkout / "runs").iterdir() if folder.name != "digits_msngan"]
    assert (run / "metrics.jsonl").read_text().count('"d_loss"') == 2


def test_what_only_ci_runs_is_run_by_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [command for command in COMMANDS if command.startswith("make")] == [*BY_CI, *BY_TEST]
    assert all(command in script for command in BY_CI)


@pytest.mark.parametrize("code", CODE)
def test_python_of_the_readme_runs(code: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    names: dict[str, torch.Tensor] = {}
    exec(code, names)
    if "load_generator" in code:
        assert names["images"].shape == (64, 1, 32, 32)
