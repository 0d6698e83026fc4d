"""The lock on a run's folder: one process trains in it at a time."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from gan.utils.errors import UserError
from gan.utils.locks import FileLock
from gan.utils.safe_reading import parse_json, read_file

log = logging.getLogger(__name__)
_FILE = ".lock"


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Re-raise an OSError of the block as UserError about ``path``, a run's folder or a file beside it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written to ({error.strerror}). Set run.dir to a folder that can.") from None


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock a run's ``folder`` inside the block, on this machine and, where the file system passes locks on, on others.

    The folder is created where it is missing. Raises UserError when another process has locked it.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _FILE)
    with closing(lock):
        try:
            acquired = lock.acquire(wait=False)
        except OSError as error:
            log.warning(f"{folder} cannot be locked ({error.strerror}): nothing keeps a second process out of it.")
            acquired = True
        if not acquired:
            holder = _holder(folder)
            raise UserError(
                f"{folder}: another process is training in it{holder}. Wait for it or stop it, or set another run.name."
            )
        try:
            yield
        finally:
            with suppress(OSError):  # for example on a full disk
                if os.fstat(lock.descriptor).st_size:
                    os.ftruncate(lock.descriptor, 0)


def is_locked(folder: Path) -> bool:
    """Return whether a process trains in ``folder``; False on a file system without locks.

    The lock is held for an instant, so ask only where no training is about to start.
    """
    if not (folder / _FILE).is_file():
        return False
    with suppress(OSError), closing(FileLock(folder / _FILE, read_only=True)) as lock:
        return not lock.acquire(wait=False)
    return False


def holder(folder: Path) -> str:
    """Return the process that trains in ``folder``, such as "process 12 on HOST since TIME"; "" where none does.

    A process signs once it holds the lock, so this does not disturb one that starts in a folder where none was killed.
    """
    name = _holder(folder)
    return name.strip(" ()") if name and is_locked(folder) else ""


def sign(folder: Path) -> None:
    """Write this process into the lock file of ``folder``, which it has locked, for the message that a second process shows."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"process": os.getpid(), "host": socket.gethostname(), "since": started}
    (folder / _FILE).write_text(json.dumps(entry))


def _holder(folder: Path) -> str:
    """Return the process that ``sign`` named; "" where it has not done so yet."""
    try:
        found = parse_json(read_file(folder / _FILE, 1000))
        return f" (process {int(found['process'])} on {found['host']} since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ""
