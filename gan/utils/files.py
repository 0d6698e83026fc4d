"""Writing files so that a kill, a crash or a full disk leaves the old content or the new, never a part."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gan.utils.errors import UserError
from gan.utils.locks import FileLock


def sync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes ``folder``, for a command's results. Raises UserError where there is a file of that name, or it may not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}). Give a folder that can.") from None


def cache_root() -> Path:
    """Where what can be made again is kept: $MSNGAN_CACHE, or msngan in the user's cache folder."""
    if folder := os.environ.get("MSNGAN_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msngan"


def write_synced(path: Path, *content: bytes | memoryview) -> None:
    """Writes the pieces of ``content`` to ``path`` and waits until they are on the disk; ``path`` may be seen half written
    meanwhile."""
    with path.open("wb") as file:
        for piece in content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Removes what killed ``write_atomically`` calls left directly in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Replaces ``path`` by the pieces of ``content``: another process sees the old file or the whole new one.

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
    """A folder to be filled inside the block, beside ``out`` and hidden; after the block it is ``out``.

    So ``out`` is whole or not there at all. What a kill left of an earlier call is begun anew.

    Raises UserError where ``out`` holds files already or cannot be replaced, and where another process is making it.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty, so two sets of files would mix. Choose a new folder.")
    place = out.resolve()  # a link stays, and what it points to is made
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
