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

import eval.__main__ as evaluation
from gan.utils import cli
from tests.conftest import TINY
from tests.small import scale_down

ROOT = Path(__file__).parent.parent
TEXT = "\n".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = list(dict.fromkeys(line for block in BLOCKS for line in block.replace("\\\n    ", "").splitlines() if line.strip()))
CODE = list(dict.fromkeys(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)))
BY_CI = ("make train", "make test")
BY_TEST = ('make table2 SEEDS="0 1 2" STEPS=50000',)  # tests/eval/test_table2.py
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


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


def run(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(words, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in (*BY_CI, *BY_TEST)])
def test_command_of_the_readme_runs(command: str, checkout: Path) -> None:
    words = shlex.split(command)
    environment = {}
    while "=" in words[0]:
        key, _, value = words.pop(0).partition("=")
        environment[key] = value
    if words[:4] == ["python", "-m", "eval", "table2"]:  # of runs scored by the command further up, in small
        (score,) = [other for other in COMMANDS if other.startswith("python -m eval score")]
        with pytest.MonkeyPatch.context() as patch:
            scale_down(patch)
            patch.chdir(checkout)
            assert cli.run(lambda: evaluation.main(shlex.split(score)[3:])) == 0
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
        if words[1] == "train.py":
            words = small(words)
        elif words[2] == "study":
            little = ["training.epochs=0.2", "data.train_images=200", "data.test_images=50"]
            if words[3] in ("train", "sweep"):
                words += little
            else:  # of runs that were trained by the command further up
                (command,) = [other for other in COMMANDS if other.startswith("python -m study train")]
                trained = run([sys.executable, *shlex.split(command)[1:], *little], checkout, {})
                assert trained.communicate(timeout=300)[0] and trained.returncode == 0
        workers = [run(words, checkout, environment)]
    else:
        assert words[:2] == ["accelerate", "launch"], f"not run by any test: {command}"
        words = small([*LAUNCH, *words[2:]])
        processes = words.index("--num_processes") + 1
        machines = int(words[words.index("--num_machines") + 1])
        words[processes] = "2"  # eight GPUs become two CPU processes, two machines two of one process each
        environment["ACCELERATE_USE_CPU"] = "1"
        words = [word.replace("MAIN_HOST", "127.0.0.1") for word in words]
        workers = []
        for machine in range(machines):
            if machines > 1:
                words = [
                    str(machine) if before == "--machine_rank" else word
                    for before, word in zip(["", *words], words, strict=False)
                ]
            workers.append(run(words, checkout, environment))
    output = ""
    for worker in workers:
        output += worker.communicate(timeout=300)[0]
        assert worker.returncode == 0, output
        assert "Traceback" not in output
    if "training.steps=1000" in command:
        assert "from step 4 to 6" in output
    if "--dry-run" in command:
        assert "discriminator:  2,937,281 parameters (mean_spectral)" in output


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
