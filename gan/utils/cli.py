"""How every command of the project ends: exit code 0; 2 and one line for a user's mistake; anything else is ours."""

import argparse
import errno
import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from gan.utils.errors import LostProcessError, TrainingDivergedError, UserError, first_line
from gan.utils.memory import keep_large_blocks
from gan.utils.progress import show_messages
from gan.utils.safe_reading import printable

# What a disk or a permission refuses is for the user to mend, wherever it shows.
_USERS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE,
}  # fmt: skip


def is_users(error: Exception) -> bool:
    """Whether ``error`` is a disk's or a permission's refusal."""
    return isinstance(error, OSError) and error.errno in _USERS


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes told in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def whole_number(low: int) -> Callable[[str], int]:
    """Reads a whole number from ``low`` up."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {low} up")
        return int(text)

    return read


def run(command: Callable[[], int]) -> int:
    """``command``'s exit code, its errors told in one line on stderr."""
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
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler shows a traceback where a worker is killed
        for child in multiprocessing.active_children():
            child.kill()  # one that decodes images outlives SIGTERM, and Python would wait for it
        return _fail("interrupted.", 130)


def _is_lack_of_memory(error: Exception) -> bool:
    """torch has no class of its own for a CPU's."""
    words = ("not enough memory", "out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _fail(message: str, code: int) -> int:
    print("error: " + printable(" ".join(message.split("\n"))), file=sys.stderr)
    return code
