"""Sets of images to be scored: data sets, folders and zips, and the samples of a generator."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.measurement import CHOSEN
from gan.config import GanConfig
from gan.data.datasets import ImageDataset, load_images, to_pixels
from gan.data.sources import Source, open_source
from gan.inference import sampling
from gan.runs import checkpoints
from gan.runs.folder import refuse_run
from gan.utils.errors import UserError
from gan.utils.files import cache_root, write_atomically
from gan.utils.safe_reading import read_file
from gan.utils.settings import DataConfig

log = logging.getLogger(__name__)
DATASETS = tuple(name for name in get_args(get_type_hints(DataConfig)["name"]) if name != "folder")
QUANTISATION = "uint8, rounded"


class StoredImages:
    """Images of a data set, folder or zip, scaled to one size and converted to one number of channels."""

    def __init__(self, images: ImageDataset) -> None:
        self.images, self.remarks = images, images.remarks()
        self.identity: dict[str, Any] = {
            "content": _content(images.source),
            "count": len(images),
            "image": [images.channels, images.size, images.size],
            "fit": "shorter side scaled (Lanczos), centre-cropped",
        }

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, end: int) -> dict[str, Any]:
        """Return the identity of the images from ``start`` to ``end``, which sets that differ elsewhere share."""
        return {**self.identity, "content": self.images.source.content(start, end), "count": end - start}

    def read(self, start: int, count: int) -> Tensor:
        return torch.stack([self.images[index] for index in range(start, start + count)])


def _content(source: Source) -> str:
    """Return the name of a set's content. That of a folder takes the reading of all files: it is cached until one is written."""
    times, root = source.times(), cache_root()
    if not times or root is None:
        return source.content()
    path = root / "content" / hashlib.sha256(f"{source.fingerprint()} {times}".encode()).hexdigest()[:32]
    with suppress(OSError, ValueError):
        found = read_file(path, 64).decode("ascii")
        if len(found) == 64 and set(found) <= set("0123456789abcdef"):
            return found
    content = source.content()
    with suppress(OSError):  # the file only saves time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())
    return content


class ChosenImages:
    """Some images of a set, in its order."""

    def __init__(self, images: StoredImages, indices: NDArray[Any], choice: dict[str, Any]) -> None:
        """``choice`` says how the ``indices`` were chosen, in words that JSON can hold."""
        self.images, self.indices = images, indices
        self.identity: dict[str, Any] = {**images.identity, CHOSEN: choice}

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, start: int, count: int) -> Tensor:
        return torch.cat([self.images.read(int(index), 1) for index in self.indices[start : start + count]])


class NativeImages:
    """Images of a source in their own size, which must be the same for all, in three channels."""

    def __init__(self, source: Source, spec: str) -> None:
        self.source, self.spec, self.remarks = source, spec, source.remarks
        self.shape = self._pixels(0).shape
        self.identity: dict[str, Any] = {
            "content": source.content(),
            "count": len(source),
            "image": list(self.shape),
            "fit": "as they are",
        }

    def __len__(self) -> int:
        return len(self.source)

    def part(self, start: int, end: int) -> dict[str, Any]:
        """Return the identity of the images from ``start`` to ``end``, which sets that differ elsewhere share."""
        return {**self.identity, "content": self.source.content(start, end), "count": end - start}

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        return to_pixels(self.source.read(index), 3)

    def read(self, start: int, count: int) -> Tensor:
        images = []
        for index in range(start, start + count):
            pixels = self._pixels(index)
            if pixels.shape != self.shape:
                (_, height, width), (_, other_height, other_width) = self.shape, pixels.shape
                raise UserError(
                    f"{self.spec}: images of mixed sizes (the first is {width}x{height}, number {index + 1} is"
                    f" {other_width}x{other_height}). Give --size {min(height, width)} to scale and crop all to one size."
                )
            images.append(torch.from_numpy(pixels))
        return torch.stack(images)


class GeneratedImages:
    """The samples 0, 1, 2, ... of a generator for one seed."""

    def __init__(self, network: nn.Module, config: GanConfig, weights: str, seed: int) -> None:
        self.network, self.seed, self.latent_dim = network, seed, config.model.latent_dim
        name = "ema" if weights == "ema" else "generator"
        self.identity: dict[str, Any] = {
            "generator_sha256": checkpoints.checksum(name, network.state_dict()),
            "weights": weights,
            "seed": seed,
            "quantisation": QUANTISATION,
        }

    def __len__(self) -> int:
        return 2**63 - 1

    def read(self, start: int, count: int) -> Tensor:
        pieces = sampling.generate(self.network, seed=self.seed, start=start, count=count, latent_dim=self.latent_dim)
        return torch.cat(list(pieces))


def parse_spec(spec: str, *, size: int = 32, channels: int | None = None, folder: str | None = None) -> DataConfig:
    """Return the data settings for a SPEC: NAME[:SPLIT], or the path of a folder or zip.

    ``folder`` is where the files of a named data set are, or where they will be downloaded to. Raises UserError for an
    unknown name or split, a path that does not exist, or a run's folder.
    """
    name, _, split = spec.partition(":")
    if name not in DATASETS:
        if not Path(spec).exists():
            raise UserError(
                f"{spec}: neither a data set ({', '.join(DATASETS)}, with :train or :test) nor an existing folder or .zip."
            )
        refuse_run(Path(spec))
        return DataConfig(name="folder", path=spec, image_size=size, channels=channels)
    if Path(spec).exists():
        log.warning(f"{spec}: the data set of that name, not ./{spec}. Give ./{spec} for the one here.")
    if split not in ("", "train", "test") or (split == "test" and name == "digits"):
        expected = "has no splits" if name == "digits" else "expected train or test after the colon"
        raise UserError(f"{spec}: {expected}.")
    return DataConfig(
        name=name,  # type: ignore[arg-type]
        split="test" if split == "test" else "train",
        path=folder,
        image_size=size,
        channels=channels,
    )


def open_images(spec: str, *, size: int | None, folder: str | None = None) -> StoredImages | NativeImages:
    """Return the images of a SPEC in three channels: in their own size, or scaled and cropped to ``size`` x ``size``.

    Raises UserError for fewer than two images, or mixed sizes where ``size`` is None.
    """
    opened: StoredImages | NativeImages
    if size is not None:
        opened = StoredImages(load_images(parse_spec(spec, size=size, channels=3, folder=folder)))
    else:
        opened = NativeImages(open_source(parse_spec(spec, channels=3, folder=folder)), spec)
    if len(opened) < 2:
        raise UserError(f"{spec}: one image. A covariance needs at least 2 images, a score thousands.")
    return opened
