"""Keep other processes of this machine out of a file or folder, until the lock is released or its process ends."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_open_locks: "set[FileLock]" = set()


class FileLock:
    """An exclusive advisory lock (flock) on a file, which is created if it is missing, or on a folder.

    The package filelock is not used: each attempt to lock empties the file, which would erase the name of the process that
    holds it, and its descriptor is private, so that a forked child could not close it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open ``path`` without locking it. Raises OSError. With ``read_only`` it must exist, and may belong to another user."""
        flags = os.O_RDONLY if read_only or path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_APPEND
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)  # the umask says whether a group may write
        _open_locks.add(self)

    def acquire(self, *, wait: bool) -> bool:
        """Return True once the lock is held; False if another process holds it and ``wait`` is false.

        Raises OSError on a file system without locks.
        """
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Release the lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1
        _open_locks.discard(self)


def _close_all() -> None:
    for lock in list(_open_locks):
        lock.close()


# A lock is held until every copy of its descriptor is closed, and a forked process has a copy: a worker that decodes images can
# outlive its killed run for a while.
os.register_at_fork(after_in_child=_close_all)


@contextmanager
def locked(path: Path, when_waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock on ``path`` inside the block. If another process holds it, call ``when_waiting`` and wait.

    The block gets False where the file was removed during the wait: another process may lock a new one of that name.
    Raises OSError if ``path`` cannot be opened. On a file system without locks the block runs without one.
    """
    lock = FileLock(path)
    try:
        with suppress(OSError):
            if not lock.acquire(wait=False):
                when_waiting()
                lock.acquire(wait=True)
        yield os.fstat(lock.descriptor).st_nlink > 0
    finally:
        lock.close()
