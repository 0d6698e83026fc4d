"""What all programs share: exit codes, errors in one line, options, configurations by name."""

import argparse
import difflib
import errno
import io
import logging
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TextIO

from gan.utils.errors import LostProcessError, TrainingDivergedError, UserError, first_line
from gan.utils.files import expand_home
from gan.utils.memory import keep_large_blocks
from gan.utils.progress import show_messages
from gan.utils.safe_reading import printable

log = logging.getLogger(__name__)

RUN = "a run's folder, one of its checkpoints, an export, or hf://OWNER/NAME"  # help of RUN
CHECKPOINT = "of a run: newest (default), best, or the step of one that it keeps"  # help of --checkpoint

# Disk and permission errors, which the user can repair, wherever they occur.
_USERS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def is_users(error: Exception) -> bool:
    """Return whether ``error`` is a disk or permission error, which the user can repair."""
    return isinstance(error, OSError) and error.errno in _USERS


class _ShowVersion(argparse.Action):
    """Print the version. It is looked up when it is asked for: a checkout that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            found = version("msngan")
        except PackageNotFoundError:
            found = "(not installed)"
        print(f"msngan {found}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse with ``--version``, and with errors in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.add_help:
            self.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a function that parses a whole number from ``low`` to ``high`` (None: no limit)."""
    limits = f"from {low} up" if high is None else f"from {low} to {high}"

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= (2**63 - 1 if high is None else high):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number {limits}")
        return int(text)

    return read


def path(text: str) -> Path:
    """Parse a path, in which a leading ~ is the home folder."""
    return Path(path_or_name(text))


def path_or_name(text: str) -> str:
    """Parse what may be a path, in which a leading ~ is the home folder, or a name."""
    try:
        return expand_home(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_out(parser: argparse.ArgumentParser, help: str, **options: Any) -> None:
    """Add ``--out`` for a file, and ``--force``; see ``refuse_existing``."""
    parser.add_argument("--out", type=path, required=True, help=help, **options)
    parser.add_argument("--force", action="store_true", help="replace the file that is --out")


def refuse_existing(options: argparse.Namespace) -> None:
    """Raise UserError where ``--out`` is a file already, without ``--force``."""
    if options.out.is_file() and not options.force:
        raise UserError(f"--out {options.out}: exists. Choose another name, or add --force to replace it.")


def device(text: str) -> str:
    """Parse the name of a device that this machine has."""
    from gan.utils.devices import usable_device  # imports torch, which takes seconds

    try:
        return str(usable_device(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def find_config(name: str) -> Path:
    """Return the configuration file ``name``: a path, or the name of one that comes with the package.

    Raises UserError where there is neither, with the names that are most alike.
    """
    name = expand_home(name)
    if Path(name).is_file() or name.endswith((".yaml", ".yml")):  # a run's folder may have the name of its configuration
        return Path(name)
    package = Path(__file__).resolve().parents[1]
    root = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), package)
    if (packaged := root / f"{name}.yaml").is_file():
        return packaged
    known = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    near = difflib.get_close_matches(name, known, 3) or known
    found = "a folder, not a file" if Path(name).is_dir() else "neither a file nor the name"
    raise UserError(f"--config {name}: {found} of a configuration, such as {', '.join(near)}.")


def warn_of_another_folder(config: Path, overrides: Sequence[str], folder: Path) -> None:
    """Log a warning where ``config`` is of a run in another folder than ``folder``, as after a move or a copy.

    There is none where ``overrides`` name the folder: then it is meant.
    """
    here = config.resolve().parent
    named = any(word.startswith(("run.name=", "run.dir=")) for word in overrides)
    if config.name == "config.yaml" and (here / "environment.json").exists() and here != folder.resolve() and not named:
        log.warning(
            f"{config}: of the run in {here}, but its settings name {folder}, and this is where it trains."
            f" To resume the run there, add run.dir={here.parent} run.name={here.name}."
        )


def program(main: Callable[[Sequence[str]], int]) -> Callable[[], int]:
    """Return the entry point of a program: ``main`` with the arguments of the command line, its errors in one line."""
    return lambda: run(lambda: main(sys.argv[1:]))


def run(command: Callable[[], int]) -> int:
    """Return the exit code of ``command``: 2 after one line on stderr for a user's mistake; other errors are ours."""
    _open_closed_streams()
    keep_large_blocks()
    show_messages()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # as \\xe9, where the terminal's encoding cannot show it
    try:
        code = _code_of(command)
    except BrokenPipeError:
        if not _has_lost_its_reader(sys.stdout):
            raise
        code = 128 + signal.SIGPIPE
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except OSError as error:
        code = code or _fail(f"standard output: {error.strerror}.", 2)
    else:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    return code


def _open_closed_streams() -> None:
    """Open the null device in place of stdout and stderr where they were closed, as by ``>&-``."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (for as long as the program runs)


def _has_lost_its_reader(stream: TextIO) -> bool:
    """Return whether ``stream`` is a pipe that nobody reads any longer, as of ``| head``."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _code_of(command: Callable[[], int]) -> int:
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
    if code != 2 or _reports_mistakes():
        with suppress(OSError):
            print("error: " + printable(" ".join(message.split("\n"))), file=sys.stderr)
    return code


def _reports_mistakes() -> bool:
    """Return whether this process reports a user's mistake: of processes that are not connected yet, one of each machine."""
    distributed = sys.modules.get("torch.distributed")
    return os.environ.get("LOCAL_RANK", "0") == "0" or bool(distributed and distributed.is_initialized())
