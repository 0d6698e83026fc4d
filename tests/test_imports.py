"""Imports go one way: import-linter's contracts in pyproject.toml hold it; here is what they cannot say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gan", "eval", "study", "benchmarks")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("*.py"))])


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    call = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run([sys.executable, "-c", call, "--no-cache"], cwd=root, capture_output=True, text=True, check=False)


def copy_of_the_packages(to: Path) -> Path:
    for path in (ROOT / "pyproject.toml", *(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))):
        copy = to / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return to


def test_imports_go_one_way() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_forbidden_import_is_noticed(tmp_path: Path) -> None:
    root = copy_of_the_packages(tmp_path)
    with (root / "gan" / "models" / "losses.py").open("a") as file:
        file.write("\nfrom gan.training import loop\n")
    done = lint_imports(root)
    assert done.returncode != 0
    assert "gan.models.losses -> gan.training.loop" in done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute_and_hide_no_builtin(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
        if isinstance(node, ast.Import):
            assert all(alias.name != "eval" for alias in node.names), "hides the builtin eval"


@pytest.mark.parametrize(
    "words",
    [
        "train.py training.stepz=1", "-m gan --help", "-m gan sample --help", "-m gan samlpe", "-m eval --help",
        "-m eval score runs --protocol qiuck", "-m study --help", "-m study train --config study/digits_cnn3 seeed=1",
    ],
)  # fmt: skip
def test_help_and_mistakes_on_the_command_line_are_told_without_importing_torch(words: str) -> None:
    imported = modules_of(words)
    assert "gan.config" in imported
    assert not {"torch", "torchvision", "accelerate", "scipy", "sklearn", "numpy"} & imported


@pytest.mark.slow
def test_a_dry_run_does_not_import_what_only_scoring_needs() -> None:
    imported = modules_of("train.py --dry-run")
    assert "torch" in imported
    assert not {"scipy", "sklearn", "torchvision", "eval.scoring"} & imported


@pytest.mark.slow
def test_scoring_while_training_does_not_import_statistics_that_it_does_not_use() -> None:
    imported = modules_of("-m eval.scoring")
    assert "scipy.linalg" in imported
    assert not {"scipy.stats", "sklearn"} & imported


def modules_of(words: str) -> set[str]:
    """Return the modules that Python had imported when the program ended."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
