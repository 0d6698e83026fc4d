"""The lock on a run's folder: one process trains in it at a time."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from gan.utils.errors import UserError
from gan.utils.locks import FileLock
from gan.utils.safe_reading import parse_json

log = logging.getLogger(__name__)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Re-raise an OSError of the block as UserError about the run's ``folder``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}). Set run.dir to a folder that can.") from None


class RunLock:
    """A lock on a run's folder until ``close`` or the end of the process. Its .lock file names the process after ``sign``."""

    def __init__(self, folder: Path) -> None:
        """Create ``folder`` where it is missing, and lock it.

        Raises UserError when another process has locked it, on this machine or, where the file system passes locks on, on
        another one.
        """
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")
        try:
            acquired = self._lock.acquire(wait=False)
        except OSError as error:
            log.warning(f"{folder} cannot be locked ({error.strerror}): nothing keeps a second process out of it.")
            return
        if not acquired:
            holder = _holder(self._lock.descriptor)
            self._lock.close()
            raise UserError(
                f"{folder}: another process is training in it ({holder}). Wait for it or stop it, or set another run.name."
            )

    def sign(self) -> None:
        """Write process, host and time into the .lock file, for the message that a second process shows."""
        os.ftruncate(self._lock.descriptor, 0)  # removes the entry of a killed process
        started = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"process": os.getpid(), "host": socket.gethostname(), "since": started}
        os.write(self._lock.descriptor, json.dumps(entry).encode())

    def close(self) -> None:
        """Empty the .lock file and release the lock."""
        with suppress(OSError):  # for example a full disk
            if os.fstat(self._lock.descriptor).st_size:
                os.ftruncate(self._lock.descriptor, 0)
        self._lock.close()


def _holder(descriptor: int) -> str:
    try:
        found = parse_json(os.pread(descriptor, 1000, 0))
        return f"process {int(found['process'])} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its entry yet
        return "which has not said its name yet"
