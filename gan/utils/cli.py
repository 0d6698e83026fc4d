"""What all programs share: exit codes, errors in one line, options, configurations by name."""

import argparse
import difflib
import errno
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from gan.utils.errors import LostProcessError, TrainingDivergedError, UserError, first_line
from gan.utils.memory import keep_large_blocks
from gan.utils.progress import show_messages
from gan.utils.safe_reading import printable

# Disk and permission errors, which the user can repair, wherever they occur.
_USERS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE,
}  # fmt: skip


def is_users(error: Exception) -> bool:
    """Return whether ``error`` is a disk or permission error, which the user can repair."""
    return isinstance(error, OSError) and error.errno in _USERS


class _ShowVersion(argparse.Action):
    """Print the version. It is looked up when it is asked for: a checkout that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"msngan {version('msngan')}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse with ``--version``, and with errors in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.add_help:
            self.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def whole_number(low: int) -> Callable[[str], int]:
    """Return a function that parses a whole number of at least ``low``."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {low} up")
        return int(text)

    return read


def find_config(name: str) -> Path:
    """Return the configuration file ``name``: a path, or the name of one that comes with the package.

    Raises UserError where there is neither, with the names that are most alike.
    """
    if Path(name).exists() or name.endswith((".yaml", ".yml")):
        return Path(name)
    package = Path(__file__).resolve().parents[1]
    root = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), package)
    if (found := root / f"{name}.yaml").is_file():
        return found
    known = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    near = difflib.get_close_matches(name, known, 3) or known
    raise UserError(f"--config {name}: neither a file nor the name of a configuration, such as {', '.join(near)}.")


def program(main: Callable[[Sequence[str]], int]) -> Callable[[], int]:
    """Return the entry point of a program: ``main`` with the arguments of the command line, its errors in one line."""
    return lambda: run(lambda: main(sys.argv[1:]))


def run(command: Callable[[], int]) -> int:
    """Return the exit code of ``command``: 2 after one line on stderr for a user's mistake; other errors are ours."""
    keep_large_blocks()
    show_messages()
    try:
        return command()
    except UserError as error:
        return _fail(str(error), 2)
    except (TrainingDivergedError, LostProcessError) as error:
        return _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        return _fail(f"not enough memory ({first_line(error)}). Lower the batch, the image size or the networks' channels.", 2)
    except OSError as error:
        if not is_users(error):
            raise
        return _fail(f"{error.filename or 'disk'}: {error.strerror}.", 2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler shows a traceback when a worker is killed
        for child in multiprocessing.active_children():
            child.kill()  # a worker that decodes images ignores SIGTERM for a while, and Python would wait for it
        return _fail("interrupted.", 130)


def _is_lack_of_memory(error: Exception) -> bool:
    """Return whether ``error`` reports a lack of memory, for which torch has no class on CPUs."""
    words = ("not enough memory", "out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _fail(message: str, code: int) -> int:
    print("error: " + printable(" ".join(message.split("\n"))), file=sys.stderr)
    return code
