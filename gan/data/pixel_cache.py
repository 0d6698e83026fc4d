"""Decoded images of an archive, kept in the cache, so that the next start need not decode them again."""

import hashlib
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gan.utils.files import cache_root, remove_unfinished, write_atomically
from gan.utils.safe_reading import open_regular

_DIGEST = hashlib.sha256().digest_size


def _path(key: str) -> Path:
    return cache_root() / "pixels" / hashlib.sha256(key.encode()).hexdigest()[:32]


def load(key: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """What was kept under ``key``, a name of the images' content and of all that their decoding depends on; None where
    there is nothing, or it is damaged."""
    size = _DIGEST + math.prod(shape)
    try:
        with open_regular(_path(key)) as file:
            content = np.fromfile(file, dtype=np.uint8, count=size) if os.fstat(file.fileno()).st_size == size else None
    except OSError:
        return None
    if content is None:
        return None
    pixels = content[_DIGEST:]
    if hashlib.sha256(pixels.data).digest() != content[:_DIGEST].tobytes():
        return None
    return pixels.reshape(shape)


def keep(key: str, pixels: NDArray[np.uint8]) -> None:
    """Keeps ``pixels`` (contiguous); not where the cache cannot be written, since it only saves time."""
    path = _path(key)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent)
        write_atomically(path, hashlib.sha256(pixels.data).digest(), pixels.data)
