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
