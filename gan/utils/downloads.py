"""Files from the network: tried a few times, verified, and put in place whole or not at all."""

import fcntl
import hashlib
import logging
import os
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from gan.utils.files import sync_folder
from gan.utils.progress import Progress

log = logging.getLogger(__name__)

# A server that breaks, stalls or sends other bytes costs (len(PAUSES) + 1) * SILENCE + sum(PAUSES) seconds: 95.
PAUSES = (1.0, 4.0)  # seconds before the second try and the third
SILENCE = 30.0  # seconds without a byte after which a server counts as gone
LONGEST = 7200.0  # seconds of one try, however steadily the bytes trickle
_CHUNK = 2**18


class DownloadError(OSError):
    """The network's or the server's fault, in one line; ``final`` where another try would get the same answer."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def has_checksum(path: Path, algorithm: str, checksum: str) -> bool:
    """Whether ``path`` is a file whose ``algorithm`` (of hashlib) begins with ``checksum``."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(checksum)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and waits until no other process of this machine is in such a block for it. Ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: names still keep writers apart
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def download(urls: Sequence[str], path: Path, algorithm: str, checksum: str) -> None:
    """Makes ``path`` the file of that ``checksum``, from the first of ``urls`` that gives it, tried in turn.

    The unfinished file lies beside it, named after the process. To be called inside ``alone_in(path.parent)``.
    Raises DownloadError, or OSError where the disk refuses.
    """
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of one that was killed
        leftover.unlink()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    left = list(urls)
    try:
        for pause in (*PAUSES, None):
            url = left.pop(0)
            try:
                _fetch(url, unfinished, algorithm, checksum)
                break
            except DownloadError as error:
                if not error.final:
                    left.append(url)
                if pause is None or not left:
                    raise
                log.info(f"{url}: {error}. Trying again in {pause:.0f} s.")
                time.sleep(pause)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def _fetch(url: str, path: Path, algorithm: str, checksum: str) -> None:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("wb") as file:
        for chunk in _chunks(url):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    if not digest.hexdigest().startswith(checksum):
        found = digest.hexdigest()[: len(checksum)]
        raise DownloadError(f"other bytes than the published ones ({algorithm} {found}, expected {checksum})")


def _chunks(url: str) -> Iterator[bytes]:
    """The bytes at ``url``, all of them, with progress shown."""
    end = time.monotonic() + LONGEST
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "msngan"})
        with urllib.request.urlopen(request, timeout=SILENCE) as response:
            size, got = response.length, 0
            with Progress(0, (size or 0) >> 20, "MB", shown=True, every_seconds=5.0) as progress:
                while chunk := response.read1(_CHUNK):
                    yield chunk
                    got += len(chunk)
                    progress.advance(" ", (got >> 20) - progress.done)
                    if time.monotonic() > end:
                        raise DownloadError(f"not done after {LONGEST:.0f} s", final=True)
            if size is not None and got != size:
                raise DownloadError(f"the connection broke after {got:,} of {size:,} bytes")
    except HTTPError as error:
        final = 400 <= error.code < 500 and error.code not in (408, 429)  # timeouts, and too many requests
        raise DownloadError(f"HTTP {error.code} {error.reason}", final=final) from None
    except TimeoutError:
        raise DownloadError(f"no byte in {SILENCE:.0f} s") from None
    except URLError as error:
        raise DownloadError(str(error.reason)) from None
    except (HTTPException, ConnectionError) as error:
        raise DownloadError(f"the connection broke ({type(error).__name__})") from None
