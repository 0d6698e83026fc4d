"""Atomic files and folders: a kill, a crash or a full disk leaves the old content or the new, never a part."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from gan.utils.errors import UserError
from gan.utils.locks import FileLock

log = logging.getLogger(__name__)


def sync_folder(folder: Path) -> None:
    """Sync ``folder``, so that renames inside it survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create ``folder`` for a command's results. Raises UserError where it cannot be created, as over a file of that name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}). Give a folder that can.") from None


def expand_home(path: str) -> str:
    """Return ``path`` with a leading ~ or ~USER replaced by the home folder. Raises UserError where there is none."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 (pathlib would also remove the ./ of ./~)
    if expanded.startswith("~"):
        raise UserError(f"{path}: {path.partition('/')[0]} has no home folder here. Write the whole path, or ./{path}.")
    return expanded


def cache_root() -> Path | None:
    """Return the cache folder: $MSNGAN_CACHE, or msngan in the user's cache folder; None for a user without a home folder.

    The second case is told once.
    """
    if folder := os.environ.get("MSNGAN_CACHE"):
        return Path(expand_home(folder))
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(expand_home(folder)) / "msngan"
    try:
        return Path.home() / ".cache" / "msngan"
    except RuntimeError:
        _say_that_nothing_is_cached()
        return None


@lru_cache
def _say_that_nothing_is_cached() -> None:
    log.info("no home folder, so nothing is kept to save the next command time; MSNGAN_CACHE names a folder for that")


def write_synced(path: Path, *content: bytes | memoryview) -> None:
    """Write the pieces of ``content`` to ``path`` and sync them. Another process can see a part of the file meanwhile."""
    with path.open("wb") as file:
        for piece in content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed ``write_atomically`` calls left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Replace ``path`` by the pieces of ``content``: another process sees the old file or the whole new one.

    The unfinished file beside it is named after the process, so that two writers do not mix; a kill can leave it behind.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(unfinished, *content)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``out``, which is renamed to ``out`` after the block: ``out`` is whole or absent.

    The remains of a killed call are removed.

    Raises UserError where ``out`` is not empty or cannot be replaced, and where another process is filling it.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty, so two sets of files would mix. Choose a new folder.")
    place = out.resolve()  # of a link, the folder that it points to
    if place == Path.cwd() or place.is_mount():
        raise UserError(f"{out}: is the current folder or a mounted one, which cannot be made anew. Choose a folder in it.")
    unfinished = place.with_name(f".{place.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    lock = FileLock(unfinished)
    try:
        with suppress(OSError):  # raised on a file system without locks
            if not lock.acquire(wait=False):
                raise UserError(f"{out}: another process is making it. Wait for it, or choose another folder.")
        for leftover in unfinished.iterdir():
            leftover.unlink()
        try:
            yield unfinished
            unfinished.rename(place)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync_folder(place.parent)
    finally:
        lock.close()
