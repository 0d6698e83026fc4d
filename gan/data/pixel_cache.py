"""Cache of decoded pixels, so that the next start need not decode an archive again."""

import hashlib
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from gan.data.decoding import Pixels
from gan.utils.files import cache_root, remove_unfinished, write_atomically
from gan.utils.locks import locked
from gan.utils.safe_reading import open_regular

_DIGEST = hashlib.sha256().digest_size  # bytes: a file is the SHA-256 of the pixels, then the pixels


def _path(key: str) -> Path | None:
    root = cache_root()
    return root and root / "pixels" / hashlib.sha256(key.encode()).hexdigest()[:32]


def load(key: str, shape: tuple[int, ...]) -> Pixels | None:
    """Return the pixels saved under ``key``, in ``shape``; None if there are none or the file is damaged.

    ``key`` must name the images' content and everything that their decoding depends on.
    """
    size, path = _DIGEST + math.prod(shape), _path(key)
    if path is None:
        return None
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            content = np.fromfile(file, dtype=np.uint8, count=size)
    except OSError:
        return None
    pixels = content[_DIGEST:]
    if hashlib.sha256(pixels.data).digest() != content[:_DIGEST].tobytes():
        return None
    return pixels.reshape(shape)


def save(key: str, pixels: Pixels) -> None:
    """Save ``pixels`` (contiguous) under ``key``. A cache that cannot be written is ignored, since it only saves time."""
    if (path := _path(key)) is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / ".lock"):  # what is unfinished there is of a killed process
            remove_unfinished(path.parent)
            write_atomically(path, hashlib.sha256(pixels.data).digest(), pixels.data)
