"""Commands that programs show can be run as they are printed."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gan.utils.command_lines import command_line


def environment(root: Path) -> Path:
    """A folder of programs as a virtual environment in ``root`` has it."""
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "msngan", "msngan-train"):
        (programs / name).write_text("#!/bin/sh\necho $0 $*\n")
        (programs / name).chmod(0o755)
    return programs


@pytest.mark.parametrize(("started", "expected"), [("train.py", ".venv/bin/python -m gan"), ("SCRIPT", ".venv/bin/msngan")])
def test_a_command_is_called_as_its_program_was_and_runs(
    started: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = environment(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setattr(sys, "argv", [started.replace("SCRIPT", str(programs / "msngan-train"))])
    command = command_line("gan", "sample", Path("runs/my run"), "--seed", 0)
    assert command == f"{expected} sample 'runs/my run' --seed 0"
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected} sample runs/my run --seed 0\n"
    monkeypatch.setenv("PATH", str(programs))
    assert command_line("gan") == expected.rpartition("/")[2], "a program on the path is called by its name"
    monkeypatch.setenv("PATH", "")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert command_line("gan") == f"{tmp_path}/{expected}"


def test_a_program_in_the_current_folder_is_not_called_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = environment(tmp_path)
    monkeypatch.chdir(programs)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    assert command_line("wandb", "sync") == f"{programs / 'python'} -m wandb sync"
