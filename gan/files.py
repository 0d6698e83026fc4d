"""Writing files so that a kill, a crash or a full disk leaves the old content or the new, never a part."""

import os
from pathlib import Path

from gan.errors import UserError


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
