"""Commands that a program shows, so that the user can run them as they are printed."""

import shlex
import shutil
import sys
from pathlib import Path

_SCRIPTS = {"gan": "msngan", "eval": "msngan-eval", "study": "msngan-study", "wandb": "wandb"}


def command_line(package: str, *words: object) -> str:
    """Return the command that runs ``package`` with ``words``, quoted for the shell.

    It calls the package as this process was called: by the console script beside this one, or by ``python -m``.
    """
    started = Path(sys.argv[0])
    script = started.with_name(_SCRIPTS[package])
    if started.name.startswith("msngan") and script.exists():
        program = [_shown(script)]
    else:
        program = [_shown(Path(sys.executable)), "-m", package]
    return shlex.join([*program, *map(str, words)])


def _shown(program: Path) -> str:
    """Return the shortest text by which the shell finds ``program``: its name, its relative or its absolute path."""
    program, here = program.absolute(), Path.cwd()
    if shutil.which(program.name) == str(program):
        return program.name
    inside = program.is_relative_to(here) and program.parent != here  # the shell does not look for a bare name in this folder
    return str(program.relative_to(here) if inside else program)
