"""Extracted features on disk, found by the content of the images, the extractor and the versions that computed them."""

import atexit
import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from eval.extractors import Extractor, Floats
from eval.npz import read_arrays
from gan.data.datasets import DECODING
from gan.utils.errors import UserError
from gan.utils.files import cache_root, remove_unfinished, write_atomically
from gan.utils.locks import locked

log = logging.getLogger(__name__)

Part: TypeAlias = dict[str, Floats]  # "features" (n, D) and, where the extractor has classes, "logits" (n, classes)
FORMAT = 2  # of cached features; to be raised when the same images give other features


def digest(identity: Any) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def cache_folder(images: dict[str, Any], extractor: Extractor) -> Path:
    """Return the folder for the features of the images with the identity ``images``."""
    return _root() / _key(images, extractor)


def _key(images: dict[str, Any], extractor: Extractor) -> str:
    made_with = {name: version(name) for name in ("torch", "torchvision", "pillow")} | {"device": extractor.device.type}
    if "fit" in images:  # real images, not samples of a generator
        made_with["decoding"] = str(DECODING)
    return digest({"format": FORMAT, "images": images, "extractor": extractor.identity, "made_with": made_with})


def _root() -> Path:
    return cache_root() or _temporary_root()


@lru_cache
def _temporary_root() -> Path:
    """Return a folder that is removed at the end of this process."""
    folder = tempfile.TemporaryDirectory(prefix="msngan-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


class FeatureCache:
    """The features of one image set by one extractor, in parts of consecutive images.

    A part with an identity of its own is also found by sets of other content: those in which a damaged file was mended.
    """

    def __init__(
        self, images: dict[str, Any], extractor: Extractor, part: Callable[[int, int], dict[str, Any] | None] | None = None
    ) -> None:
        """``part(start, end)`` returns the identity of a part; None: it has none."""
        self.folder, self.widths, self.extractor = cache_folder(images, extractor), extractor.widths, extractor
        self._identity_of_part = part

    def path(self, start: int, end: int) -> Path:
        return self.folder / f"{start:08d}-{end:08d}.npz"

    def _shared(self, start: int, end: int) -> Path | None:
        """Return the path under which sets of other content find the part."""
        identity = self._identity_of_part(start, end) if self._identity_of_part is not None else None
        return None if identity is None else _root() / "parts" / f"{_key(identity, self.extractor)}.npz"

    def find(self, start: int, end: int) -> bool:
        """Return whether the part is there, or take it over from another set."""
        path = self.path(start, end)
        if not path.exists() and (shared := self._shared(start, end)) is not None:
            with suppress(OSError):
                path.hardlink_to(shared)
        return path.exists()

    def save(self, start: int, end: int, part: Part) -> None:
        """Write the part for the images ``start`` to ``end``. Raises UserError where the folder cannot be written."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **part)  # a zip, so that reading verifies checksums
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # the user may have emptied the cache since
            write_atomically(self.path(start, end), buffer.getvalue())
        except OSError as error:
            raise self._not_writable(error) from None
        if (shared := self._shared(start, end)) is not None:
            with suppress(OSError):  # it only saves time
                shared.parent.mkdir(exist_ok=True)
                shared.unlink(missing_ok=True)
                shared.hardlink_to(self.path(start, end))

    def load(self, start: int, end: int) -> Part | None:
        """Return the part for the images ``start`` to ``end``; None where it is missing or damaged."""
        path = self.path(start, end)
        if not path.exists():
            return None
        try:
            part = read_arrays(path, tuple(self.widths))
        except (OSError, ValueError):
            part = {}
        whole = all(
            name in part and part[name].shape == (end - start, width) and part[name].dtype == np.float32
            for name, width in self.widths.items()
        )
        if not whole:
            log.info(f"{path} is damaged and is made again.")
            return None
        return part

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder inside the block: they wait, and then find the features."""
        waiting = "waiting for another process that extracts the same images"
        held = False
        with ExitStack() as stack:
            while not held:  # the process that was waited for may have removed the folder
                stack.close()
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    held = stack.enter_context(locked(self.folder / ".lock", lambda: log.info(waiting)))
                except OSError as error:
                    raise self._not_writable(error) from None
            remove_unfinished(self.folder)
            yield

    def remove(self) -> None:
        """Delete the features, once no other process uses them."""
        with self.lock():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _not_writable(self, error: OSError) -> UserError:
        return UserError(f"{self.folder}: cannot be written to ({error.strerror}). Set MSNGAN_CACHE to a writable folder.")
