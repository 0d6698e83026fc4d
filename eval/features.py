"""Features of a set of images: extracted by one process or many, in parts that are kept, so that a stopped extraction goes on."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eval.extractors import Extractor, Floats
from gan.errors import UserError
from gan.files import remove_unfinished, write_atomically
from gan.progress import Progress, say

T = TypeVar("T")
BATCH = 64  # images in one pass of the network: also as many as the generator makes at once, see gan/sampling.py
PART = 16 * BATCH  # images that are lost when an extraction is stopped
FORMAT = 1


class ImageSet(Protocol):
    """Images by index."""

    identity: dict[str, Any]  # of their content: where it is equal, so is every image

    def __len__(self) -> int: ...
    def read(self, start: int, count: int) -> Tensor:
        """uint8 (count, 1 or 3, H, W)."""


@dataclass(frozen=True)
class Features:
    """Of N images, in their order."""

    values: Floats  # (N, D)
    logits: Floats | None  # (N, classes)
    images: dict[str, Any]  # identity of the images
    extractor: dict[str, Any]  # identity of the network

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | NDArray[Any]) -> "Features":
        logits = None if self.logits is None else self.logits[index]
        return Features(self.values[index], logits, self.images, self.extractor)


@dataclass(frozen=True)
class Team:
    """The processes that share an extraction; by default one. The functions are called by all of them together."""

    rank: int = 0
    size: int = 1
    gather: Callable[[NDArray[Any]], NDArray[Any]] = lambda own: own  # all processes' arrays (n, ...), joined in their order
    on_main: Callable[[Callable[[], Any]], Any] = lambda function: function()  # the first one's result, for all
    on_all: Callable[[Callable[[], Any]], Any] = lambda function: function()  # one's own; a mistake of any ends all

    @property
    def is_main(self) -> bool:
        return self.rank == 0


ALONE = Team()


def cache_root() -> Path:
    """Where features are kept: $MSNGAN_CACHE, or msngan in the user's cache folder."""
    if folder := os.environ.get("MSNGAN_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msngan"


def digest(identity: Any) -> str:
    """A short name of anything that JSON holds: equal names, equal content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def cache_folder(images: dict[str, Any], extractor: Extractor) -> Path:
    """Where the features of the images with an identity are kept: a function of content and extractor, not of a name."""
    return cache_root() / digest({"format": FORMAT, "images": images, "extractor": extractor.identity})


def extract(
    images: ImageSet,
    extractor: Extractor,
    *,
    count: int | None = None,
    team: Team = ALONE,
    keep: bool = True,
    batch: int = BATCH,
    shown: bool = True,
) -> Features | None:
    """Features of the first ``count`` images (default: all), on the main process; None on the others.

    ``keep`` uses and fills the cache. However many processes there are, each batch is the same, and so are its features.

    Raises UserError for an image that cannot be read.
    """
    total = len(images) if count is None else count
    ranges = [(start, min(start + PART, total)) for start in range(0, total, PART)]
    folder = cache_folder(images.identity, extractor) if keep else None
    with _held(folder if team.is_main else None):
        found: dict[int, dict[str, Floats]] = {}
        if folder is not None and team.is_main:
            found = {start: part for start, end in ranges if (part := _load_part(folder, start, end, extractor)) is not None}
        missing = team.on_main(lambda: [r for r in ranges if r[0] not in found])
        waiting = sum(end - start for start, end in missing)
        with Progress(total - waiting, total, "image", shown=shown and team.is_main and waiting > 0) as progress:
            for start, end in missing:
                part = _extract_part(images, extractor, start, end, team, batch)
                if team.is_main:
                    found[start] = part
                    if folder is not None:
                        _save_part(folder, start, end, part)
                progress.advance(" ", end - start)
    if not team.is_main:
        return None
    parts = [found[start] for start, _ in ranges]
    logits = None if extractor.classes is None else np.concatenate([part["logits"] for part in parts])
    return Features(np.concatenate([part["features"] for part in parts]), logits, images.identity, extractor.identity)


def forget(images: ImageSet, extractor: Extractor) -> None:
    """Removes the kept features of ``images``."""
    shutil.rmtree(cache_folder(images.identity, extractor), ignore_errors=True)


def _extract_part(images: ImageSet, extractor: Extractor, start: int, end: int, team: Team, batch: int) -> dict[str, Floats]:
    """Features and logits of the images ``start`` to ``end``; batches go round the processes in turn."""
    batches = [(first, min(first + batch, end)) for first in range(start, end, batch)]
    kept: list[dict[str, Floats]] = []
    for turn in range(0, len(batches), team.size):
        mine = turn + team.rank
        own = team.on_all(lambda mine=mine: _batch(images, extractor, *batches[mine]) if mine < len(batches) else None)  # type: ignore[misc]
        if team.size == 1:
            kept.append(own)
            continue
        # Gathered arrays are of one shape: padded to a full batch, and cut again.
        full = {name: np.zeros((batch, width), np.float32) for name, width in _widths(extractor).items()}
        for name, values in (own or {}).items():
            full[name][: len(values)] = values
        joined = {name: team.gather(values) for name, values in full.items()}
        for place, (first, last) in enumerate(batches[turn : turn + team.size]):
            kept.append({name: values[place * batch : place * batch + last - first] for name, values in joined.items()})
    return {name: np.concatenate([part[name] for part in kept]) for name in _widths(extractor)}


def _widths(extractor: Extractor) -> dict[str, int]:
    logits = {} if extractor.classes is None else {"logits": extractor.classes}
    return {"features": extractor.dimensions, **logits}


def _batch(images: ImageSet, extractor: Extractor, start: int, end: int) -> dict[str, Floats]:
    features, logits = extractor(images.read(start, end - start))
    return {"features": features, **({} if logits is None else {"logits": logits})}


def _part_path(folder: Path, start: int, end: int) -> Path:
    return folder / f"{start:08d}-{end:08d}.npz"


def _save_part(folder: Path, start: int, end: int, part: dict[str, Floats]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **part)  # a zip, whose checksums are verified when it is read
    write_atomically(_part_path(folder, start, end), buffer.getvalue())


def _load_part(folder: Path, start: int, end: int, extractor: Extractor) -> dict[str, Floats] | None:
    """A kept part; None where there is none, or it is damaged and must be made again."""
    path = _part_path(folder, start, end)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            part = {name: file[name] for name in _widths(extractor)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        part = {}
    whole = all(
        name in part and part[name].shape == (end - start, width) and part[name].dtype == np.float32
        for name, width in _widths(extractor).items()
    )
    if not whole:
        say(f"{path} is damaged and is made again.")
        return None
    return part


@contextmanager
def _held(folder: Path | None) -> Iterator[None]:
    """Keeps other processes from extracting the same set at the same time: they wait, and find it done."""
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}). Set MSNGAN_CACHE to a folder that can.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that extracts the same images")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the work may be done twice, and ends the same
        remove_unfinished(folder)
        yield
