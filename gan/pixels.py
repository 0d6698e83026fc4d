"""Decoded images of an archive, kept in the cache, so that the next start need not decode them again."""

import hashlib
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gan.files import cache_root, remove_unfinished, write_atomically

_DIGEST = hashlib.sha256().digest_size


def _path(key: str) -> Path:
    return cache_root() / "pixels" / hashlib.sha256(key.encode()).hexdigest()[:32]


def load(key: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """What was kept under ``key``, a name of the images' content and of all that their decoding depends on; None where
    there is nothing, or it is damaged."""
    try:
        content = np.fromfile(_path(key), dtype=np.uint8)
    except OSError:
        return None
    pixels = content[_DIGEST:]
    if len(pixels) != math.prod(shape) or hashlib.sha256(pixels.data).digest() != content[:_DIGEST].tobytes():
        return None
    return pixels.reshape(shape)


def keep(key: str, pixels: NDArray[np.uint8]) -> None:
    """Keeps ``pixels`` (contiguous); not where the cache cannot be written, since it only saves time."""
    path = _path(key)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent)
        write_atomically(path, hashlib.sha256(pixels.data).digest(), pixels.data)
