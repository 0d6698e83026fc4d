"""Download files, verify their checksums, and put them in place whole or not at all."""

import hashlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch

from gan.utils.files import sync_folder

SILENCE = 30.0  # seconds without a byte after which a server counts as gone


class DownloadError(OSError):
    """No URL gave the file; the message says for each why."""


def has_checksum(path: Path, algorithm: str, checksum: str) -> bool:
    """Return whether ``path`` is a file whose ``algorithm`` (a name in hashlib) begins with the hexadecimal ``checksum``."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(checksum)


def _is_abandoned(leftover: Path, owner: list[str], host: str) -> bool:
    """Return whether the process of a partial file has ended. ``owner`` begins with its host and number.

    The lock does not tell: not every file system passes it on to other machines.
    """
    if owner[0] != host or not owner[1].isdecimal():
        return time.time() - leftover.stat().st_mtime > 2 * SILENCE
    try:
        os.kill(int(owner[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(owner[1]) == os.getpid()


def download(urls: Sequence[str], path: Path, algorithm: str, checksum: str) -> None:
    """Download the file with ``checksum`` to ``path`` from the first of ``urls`` that serves it.

    Call this inside ``locked(path.parent)``. Raises DownloadError, or OSError if the file cannot be written.
    """
    host = socket.gethostname().partition(".")[0][:50]
    for leftover in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):
            if _is_abandoned(leftover, leftover.name.removeprefix(f".{path.name}.").split("."), host):
                leftover.unlink()
    unfinished, reasons = path.with_name(f".{path.name}.{host}.{os.getpid()}.tmp"), []
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)  # torch.hub has no timeout of its own
    try:
        for url in urls:
            try:
                torch.hub.download_url_to_file(url, str(unfinished), progress=sys.stderr.isatty())
            except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
                reasons.append(f"{url}: {getattr(error, 'reason', '') or error or type(error).__name__}")
                continue
            if has_checksum(unfinished, algorithm, checksum):
                unfinished.replace(path)
                return sync_folder(path.parent)
            reasons.append(f"{url}: incomplete, or not the published file ({algorithm} is not {checksum})")
    finally:
        socket.setdefaulttimeout(timeout)
        unfinished.unlink(missing_ok=True)
    raise DownloadError("; ".join(reasons))
