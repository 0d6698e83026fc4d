"""Samples beside their nearest training images: a look for copies. A diagnostic, not a proof."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan.data.datasets import ImageDataset, load_images
from gan.inference.generator import TrainedGenerator, run_of
from gan.inference.images import Pixels, grid
from gan.inference.options import PIXELS
from gan.runs.folder import require_trained_on
from gan.utils.errors import UserError
from gan.utils.progress import follow

Features = NDArray[np.floating[Any]]
_PART = 4096  # training images that are in memory at a time


@dataclass(frozen=True)
class Neighbours:
    """N samples of a generator with the K nearest training images of each, nearest first."""

    samples: Tensor  # (N, C, S, S) uint8
    images: Tensor  # (N, K, C, S, S) uint8
    indices: NDArray[np.int64]  # (N, K), in the order of the training images
    distances: NDArray[np.float64]  # (N, K), Euclidean
    space: str  # what the distances are of: "pixels" (from 0 to 1), or the features of an extractor

    def grid(self) -> Pixels:
        """Return a picture with a row for each sample: the sample, a white gap, its neighbours."""
        first = self.samples[:, None]
        return grid(torch.cat([first, torch.full_like(first, 255), self.images], 1).flatten(0, 1), 2 + self.images.shape[1])

    def as_json(self) -> dict[str, Any]:
        """Return indices and distances, by sample."""
        return {"space": self.space, "indices": self.indices.tolist(), "distances": self.distances.tolist()}

    def describe(self) -> str:
        """Return indices and distances as text, a line a sample."""
        rows = zip(self.indices, self.distances, strict=True)
        lines = [
            f"sample {number}: " + ", ".join(f"{index} ({distance:.3f})" for index, distance in zip(*row, strict=True))
            for number, row in enumerate(rows)
        ]
        head = (
            f"nearest training images by {self.space}: index (distance). A diagnostic, not a proof of copying or of its absence."
        )
        return "\n".join([head, *lines])


def nearest(samples: Features, parts: Iterable[Features], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return indices and Euclidean distances of the ``count`` rows of all ``parts`` nearest to each of the samples.

    ``samples`` (N, D) and the joined parts (M, D), M at least ``count``, give (N, count) each, nearest first; of rows at equal
    distances the first comes first.
    """
    from sklearn.neighbors import NearestNeighbors  # takes seconds to import

    wanted = samples.astype(np.float64)  # float32 would lose the digits of small distances
    indices: NDArray[np.int64] = np.empty((len(samples), 0), np.int64)
    distances: NDArray[np.float64] = np.empty((len(samples), 0))
    start = 0
    for part in parts:
        found = NearestNeighbors(n_neighbors=min(count, len(part))).fit(part.astype(np.float64)).kneighbors(wanted)
        distances, indices = np.hstack([distances, found[0]]), np.hstack([indices, found[1] + start])
        order = np.lexsort((indices, distances))[:, :count]
        distances, indices = np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
        start += len(part)
    return indices, distances


def pixel_features(images: Tensor) -> Features:
    """Return images (N, C, S, S) uint8 as rows of numbers from 0 to 1: (N, C * S * S) float32."""
    return images.flatten(1).numpy().astype(np.float32) / 255


def training_images(generator: TrainedGenerator, path: str | None, neighbours: int) -> ImageDataset:
    """Open the images that ``generator`` was trained on; ``path`` is where they are now, None: where they were.

    Raises UserError where they cannot be read, are others by now, or are fewer than ``neighbours``.
    """
    data = generator.config.data
    images = load_images(data if path is None else replace(data, path=path))
    if run := run_of(generator):
        require_trained_on(images, run)
    if neighbours > len(images):
        raise UserError(f"--neighbours {neighbours}: there are {len(images):,} training images. Choose at most as many.")
    return images


def find_neighbours(
    generator: TrainedGenerator,
    images: ImageDataset,
    *,
    count: int,
    neighbours: int,
    seed: int = 0,
    space: str = PIXELS,
    features: Callable[[Tensor], Features] = pixel_features,
    training_features: Iterable[Features] | None = None,
) -> Neighbours:
    """Return the samples 0 to ``count`` of ``seed`` with the ``neighbours`` nearest of the training ``images``.

    ``space`` names what ``features`` makes of images. ``training_features`` are those of ``images``, in parts, where they are
    at hand; else the images are read. Raises UserError for one that cannot be read.
    """
    samples = generator.sample(count, seed)
    parts = map(features, _read(images)) if training_features is None else training_features
    indices, distances = nearest(features(samples), parts, neighbours)
    near = torch.stack([torch.stack([images[int(index)] for index in row]) for row in indices])
    return Neighbours(samples, near, indices, distances, space)


def _read(images: ImageDataset) -> Iterator[Tensor]:
    pixels: list[Tensor] = []
    for index in follow(iter(range(len(images))), len(images), "reading images"):
        pixels.append(images[index])
        if len(pixels) == _PART or index + 1 == len(images):
            yield torch.stack(pixels)
            pixels = []
