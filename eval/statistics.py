"""Mean and covariance of features: streamed in float64, merged, and kept in .npz files that pytorch-fid reads too."""

import hashlib
import io
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from eval.npz import read_arrays
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.safe_reading import parse_json

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]
_ROWS = 1024  # that are brought to float64 at a time
_MOST_BYTES = 2**29  # of a covariance, of 8,192 features


@dataclass(frozen=True)
class GaussianStats:
    """A Gaussian fitted to features, or what another program wrote of one."""

    mean: Matrix  # (D,)
    covariance: Matrix  # (D, D), divided by count - 1
    count: int | None = None  # images; None: a foreign file does not say
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @cached_property
    def content(self) -> str:
        """SHA-256 of the numbers."""
        return hashlib.sha256(
            np.ascontiguousarray(self.mean).tobytes() + np.ascontiguousarray(self.covariance).tobytes()
        ).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """What they are, by content, and where they come from, as far as known."""
        return {"statistics": self.provenance, "content": self.content, "count": self.count}

    @cached_property
    def factor(self) -> Matrix:
        """R (D, r) with covariance = R R^T; r is D, or less where the covariance is singular.

        By Cholesky where that exists. Else from the eigenvalues, of which those beyond the rank that ``count`` allows are
        rounding errors: kept, their square roots would add up in the Frechet distance.
        """
        singular = self.count is not None and self.count <= self.dimensions
        if not singular:
            try:
                return np.asarray(scipy.linalg.cholesky(self.covariance, lower=True))
            except scipy.linalg.LinAlgError:
                pass
        values, vectors = scipy.linalg.eigh(self.covariance)
        keep = values > values[-1] * self.dimensions * np.finfo(np.float64).eps
        if singular and self.count is not None:
            keep[: self.dimensions - (self.count - 1)] = False
        return np.asarray(vectors[:, keep] * np.sqrt(values[keep]))


class Accumulator:
    """Moments of features that come in pieces; pieces accumulated apart can be merged (Chan, Golub & LeVeque 1979)."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimensions)
        self.scatter = np.zeros((dimensions, dimensions))  # sum over images of (x - mean)(x - mean)^T

    def update(self, features: Floats) -> "Accumulator":
        """Adds features (N, D)."""
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS].astype(np.float64)
            mean = rows.mean(0)
            deviations = rows - mean
            self._add(len(rows), mean, deviations.T @ deviations)
        return self

    def merge(self, other: "Accumulator") -> "Accumulator":
        """Adds what ``other`` has seen."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)
        return self

    def _add(self, count: int, mean: Matrix, scatter: Matrix) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def moments(self, provenance: dict[str, Any] | None = None) -> GaussianStats:
        """What has been accumulated. Raises ValueError for fewer than two images, or numbers that are not finite."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, not {self.count}.")
        covariance = self.scatter / (self.count - 1)
        if not (np.isfinite(self.mean).all() and np.isfinite(covariance).all()):
            raise UserError("features are not finite: the images or the extractor's weights are damaged.")
        return GaussianStats(self.mean.copy(), covariance, self.count, provenance or {})


def gaussian_stats(features: Floats, provenance: dict[str, Any] | None = None) -> GaussianStats:
    """Moments of features (N, D)."""
    return Accumulator(features.shape[1]).update(features).moments(provenance)


def factored(moments: GaussianStats, features: Floats) -> GaussianStats:
    """``moments`` of ``features`` (N, D) whose factor is there already where images are so few, N <= D/2, that the centred
    features themselves are the better one."""
    if 2 * len(features) <= moments.dimensions:
        moments.__dict__["factor"] = (features - moments.mean).T / np.sqrt(len(features) - 1)  # as cached_property keeps it
    return moments


def save_stats(path: Path, moments: GaussianStats) -> None:
    """Writes ``mu`` and ``sigma``, which is all that pytorch-fid reads, and beside them ``count`` and ``provenance``."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=moments.mean,
        sigma=moments.covariance,
        count=np.array(-1 if moments.count is None else moments.count),
        provenance=np.array(json.dumps(moments.provenance, sort_keys=True)),
    )
    write_atomically(path, buffer.getvalue())


def load_stats(path: Path, *, made_by: str | None = None) -> GaussianStats:
    """Moments from ``path``: ours, or pytorch-fid's, clean-fid's or TTUR's, of which the user says with ``made_by`` which
    extractor they come from, since the file does not.

    Raises UserError for a file that holds no moments, or no provenance where ``made_by`` is None.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"{path}: {what}.")

    try:
        entries = read_arrays(path, ("mu", "sigma", "count", "provenance"), _MOST_BYTES)
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror or error})") from None
    except ValueError:
        raise refuse("no statistics file (.npz of plain arrays), or a damaged one") from None
    if "mu" not in entries or "sigma" not in entries:
        raise refuse("holds no statistics. Expected the arrays mu and sigma, as pytorch-fid writes them")
    mean, covariance = entries["mu"], entries["sigma"]
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
        raise refuse(f"mu is {mean.dtype} {mean.shape}, sigma {covariance.dtype} {covariance.shape}. Expected (D,) and (D, D)")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise refuse("holds numbers that are not finite")
    if (
        not np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * np.abs(covariance).max())
        or (np.diagonal(covariance) < 0).any()
    ):
        raise refuse("sigma is no covariance (not symmetric, or a negative variance)")
    provenance, count = _provenance(path, entries)
    if not provenance:
        if made_by is None:
            raise refuse("does not say which extractor made it. Say so with --made-by, such as --made-by inception-pytorch-fid")
        provenance = {"extractor": {"extractor": made_by}, "origin": "another program's statistics file"}
    return GaussianStats(mean, covariance, count, provenance)


def _provenance(path: Path, entries: dict[str, NDArray[Any]]) -> tuple[dict[str, Any], int | None]:
    if "provenance" not in entries:
        return {}, None
    try:
        provenance = parse_json(str(entries["provenance"]))
        count = int(entries["count"]) if "count" in entries else -1
        assert all(isinstance(provenance.get(key, {}), dict) for key in ("extractor", "images"))
        shape = provenance.get("images", {}).get("image", [0, 0, 0])
        assert len(shape) == 3 and all(isinstance(side, int) for side in shape)
    except (ValueError, TypeError, AttributeError, AssertionError, OverflowError):
        raise UserError(f"{path}: its provenance is damaged. Make it again with python -m eval reference.") from None
    return provenance, count if count > 1 else None
