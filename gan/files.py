"""Writing files so that a kill, a crash or a full disk leaves the old content or the new, never a part."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` and waits until it is on the disk; ``path`` may be seen half written meanwhile."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Removes what killed ``write_atomically`` calls left directly in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``: another process sees the old file or the whole new one.

    The unfinished file beside it is named after the process, so that two writers do not mix; a kill can leave it behind.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(unfinished, content)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
