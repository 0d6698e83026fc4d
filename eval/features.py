"""Features of a set of images: extracted by one process or many, in parts that are kept, so that a stopped extraction goes on."""

import fcntl
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eval.extractors import Extractor, Floats
from eval.npz import read_arrays
from gan.utils.errors import UserError
from gan.utils.files import cache_root, remove_unfinished, write_atomically
from gan.utils.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")
Part: TypeAlias = dict[str, Floats]  # features and logits of some images
BATCH = 64  # images in one pass of the network: also as many as the generator makes at once, see gan/inference/sampling.py
PART = 16 * BATCH  # images that are lost when an extraction is stopped
_MOST_BYTES = 2**27  # of the features or logits of a part: 32,768 of each image
FORMAT = 2  # of kept features: another number when the same images give other ones


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
    check: Callable[[], None] = lambda: None  # called before each turn of batches; raises where the work is to stop

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def only_main(self, function: Callable[[], T]) -> T | None:
        """What the main process makes of ``function``, None on the others; a mistake ends all."""
        result: T | None = self.on_all(lambda: function() if self.is_main else None)
        return result


ALONE = Team()


def digest(identity: Any) -> str:
    """A short name of anything that JSON holds: equal names, equal content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def cache_folder(images: dict[str, Any], extractor: Extractor) -> Path:
    """Where the features of the images with an identity are kept: a function of content, extractor and what
    computed them, not of a name."""
    made_with = {name: version(name) for name in ("torch", "torchvision", "pillow")} | {"device": extractor.device.type}
    return cache_root() / digest({"format": FORMAT, "images": images, "extractor": extractor.identity, "made_with": made_with})


def parts(
    images: ImageSet,
    extractor: Extractor,
    *,
    count: int | None = None,
    team: Team = ALONE,
    keep: bool = True,
    batch: int = BATCH,
    shown: bool = True,
) -> Iterator[Features]:
    """Features of the first ``count`` images (default: all), piece by piece, on the main process; nothing on the others.

    ``keep`` uses and fills the cache. However many processes there are, each batch is the same, and so are its features.

    Raises UserError for an image that cannot be read, or a cache that cannot be written.
    """
    total = len(images) if count is None else count
    ranges = [(start, min(start + PART, total)) for start in range(0, total, PART)]
    folder = cache_folder(images.identity, extractor) if keep else None
    lock = team.only_main(partial(hold, folder)) if folder is not None else None
    try:
        there = team.on_main(lambda: [folder is not None and _part_path(folder, *r).exists() for r in ranges])
        waiting = sum(end - start for (start, end), found in zip(ranges, there, strict=True) if not found)
        with Progress(total - waiting, total, "image", shown=shown and team.is_main and waiting > 0) as progress:
            for (start, end), found in zip(ranges, there, strict=True):
                part = None
                if folder is not None and found:
                    part = team.only_main(partial(_load_part, folder, start, end, extractor))
                if not team.on_main(partial(_is_there, part)):
                    part = _extract_part(images, extractor, start, end, team, batch)
                    if folder is not None:
                        team.only_main(partial(_save_part, folder, start, end, part))
                    progress.advance(" ", 0 if found else end - start)
                if team.is_main:
                    assert part is not None
                    yield Features(part["features"], part.get("logits"), images.identity, extractor.identity)
    finally:
        if lock is not None:
            lock.close()


def _is_there(part: Part | None) -> bool:
    return part is not None


def extract(images: ImageSet, extractor: Extractor, **options: Any) -> Features | None:
    """All that ``parts`` gives, joined, on the main process; None on the others."""
    pieces = list(parts(images, extractor, **options))
    if not pieces:
        return None
    logits = None if extractor.classes is None else np.concatenate([piece.logits for piece in pieces if piece.logits is not None])
    return Features(np.concatenate([piece.values for piece in pieces]), logits, images.identity, extractor.identity)


def forget(images: ImageSet, extractor: Extractor) -> None:
    """Removes the kept features of ``images``, when no other process is working on them."""
    folder = cache_folder(images.identity, extractor)
    with hold(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _extract_part(images: ImageSet, extractor: Extractor, start: int, end: int, team: Team, batch: int) -> Part:
    """Features and logits of the images ``start`` to ``end``; batches go round the processes in turn."""
    batches = [(first, min(first + batch, end)) for first in range(start, end, batch)]
    kept: list[Part] = []
    for turn in range(0, len(batches), team.size):
        team.check()
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


def _batch(images: ImageSet, extractor: Extractor, start: int, end: int) -> Part:
    features, logits = extractor(images.read(start, end - start))
    return {"features": features, **({} if logits is None else {"logits": logits})}


def _part_path(folder: Path, start: int, end: int) -> Path:
    return folder / f"{start:08d}-{end:08d}.npz"


def _save_part(folder: Path, start: int, end: int, part: Part) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **part)  # a zip, whose checksums are verified when it is read
    try:
        folder.mkdir(parents=True, exist_ok=True)  # whoever empties the cache meanwhile takes nothing from this run
        write_atomically(_part_path(folder, start, end), buffer.getvalue())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}). Set MSNGAN_CACHE to a folder that can.") from None


def _load_part(folder: Path, start: int, end: int, extractor: Extractor) -> Part | None:
    """A kept part; None where there is none, or it is damaged and must be made again."""
    path = _part_path(folder, start, end)
    if not path.exists():
        return None
    try:
        part = read_arrays(path, tuple(_widths(extractor)), _MOST_BYTES)
    except (OSError, ValueError):
        part = {}
    whole = all(
        name in part and part[name].shape == (end - start, width) and part[name].dtype == np.float32
        for name, width in _widths(extractor).items()
    )
    if not whole:
        log.info(f"{path} is damaged and is made again.")
        return None
    return part


def hold(folder: Path) -> IO[bytes]:
    """Makes a cache's ``folder`` and keeps other processes out of it until the returned file is closed: they wait, and
    find the work done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}). Set MSNGAN_CACHE to a folder that can.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that extracts the same images")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: the work may be done twice, and ends the same
    remove_unfinished(folder)
    return file
