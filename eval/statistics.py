"""Mean and covariance of features: accumulated in float64, and stored in .npz files that pytorch-fid can read."""

import hashlib
import io
import json
from dataclasses import dataclass, field, replace
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
_ROWS = 1024  # feature vectors that are converted to float64 at a time
# Of a covariance's Frobenius norm: what is still rounding. Measured: sums in float32 leave eigenvalues of -2e-7, a covariance
# rounded to float16 of -5e-6.
_ROUNDING = 1e-6


@dataclass(eq=False)
class GaussianStats:
    """A Gaussian fitted to features of dimension D."""

    mean: Matrix  # (D,)
    covariance: Matrix  # (D, D), divided by count - 1
    count: int | None = None  # images; None: another program's file does not say
    provenance: dict[str, Any] = field(default_factory=dict)
    known_factor: Matrix | None = None  # R of `factor`, once it is computed

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @cached_property
    def content(self) -> str:
        """SHA-256 of mean and covariance."""
        return hashlib.sha256(
            np.ascontiguousarray(self.mean).tobytes() + np.ascontiguousarray(self.covariance).tobytes()
        ).hexdigest()

    @property
    def extractor(self) -> dict[str, Any]:
        """Identity of the extractor, as far as known."""
        identity: dict[str, Any] = self.provenance.get("extractor", {})
        return identity

    @property
    def image_shape(self) -> list[int] | None:
        """Channels, height and width of the images; None where the file does not say."""
        shape: list[int] | None = self.provenance.get("images", {}).get("image")
        return shape

    @property
    def identity(self) -> dict[str, Any]:
        """Content, number of images and, as far as known, provenance."""
        return {"statistics": self.provenance, "content": self.content, "count": self.count}

    @property
    def factor(self) -> Matrix:
        """R (D, r) with covariance = R R^T and r <= D, computed once."""
        if self.known_factor is None:
            self.known_factor = _factorize(self.covariance, self.count)
        return self.known_factor


def _factorize(covariance: Matrix, count: int | None) -> Matrix:
    """Return R with covariance = R R^T: by Cholesky, or from the eigenvalues of a singular covariance.

    Eigenvalues beyond the rank that ``count`` images allow are rounding errors, whose square roots would add up in the
    Frechet distance; they are left out.
    """
    dimensions = len(covariance)
    singular = count is not None and count <= dimensions
    if not singular:
        try:
            return np.asarray(scipy.linalg.cholesky(covariance, lower=True))
        except scipy.linalg.LinAlgError:
            pass
    values, vectors = scipy.linalg.eigh(covariance)
    keep = values > values[-1] * dimensions * np.finfo(np.float64).eps
    if singular and count is not None:
        keep[: dimensions - (count - 1)] = False
    return np.asarray(vectors[:, keep] * np.sqrt(values[keep]))


class Accumulator:
    """Mean and scatter matrix of features that arrive in pieces (Chan, Golub & LeVeque 1979)."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimensions)
        self.scatter = np.zeros((dimensions, dimensions))  # sum over images of (x - mean)(x - mean)^T

    def update(self, features: Floats) -> "Accumulator":
        """Add features (N, D)."""
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS].astype(np.float64)
            mean = rows.mean(0)
            deviations = rows - mean
            self._add(len(rows), mean, deviations.T @ deviations)
        return self

    def merge(self, other: "Accumulator") -> "Accumulator":
        """Add the features that ``other`` has accumulated."""
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

    def stats(self, provenance: dict[str, Any] | None = None) -> GaussianStats:
        """Return the fitted Gaussian. Raises UserError for fewer than two images, or features that are not finite."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, not {self.count}.")
        covariance = self.scatter / (self.count - 1)
        if not (np.isfinite(self.mean).all() and np.isfinite(covariance).all()):
            raise UserError("features are not finite: the images or the extractor's weights are damaged.")
        return GaussianStats(self.mean.copy(), covariance, self.count, provenance or {})


def gaussian_stats(features: Floats, provenance: dict[str, Any] | None = None) -> GaussianStats:
    """Return the Gaussian fitted to features (N, D). Raises UserError as ``Accumulator.stats``."""
    return Accumulator(features.shape[1]).update(features).stats(provenance)


def with_feature_factor(stats: GaussianStats, features: Floats) -> GaussianStats:
    """Return ``stats`` of ``features`` (N, D), with the centred features as their factor where N <= D/2.

    So few images make that factor narrower than the one that would have to be computed from the covariance.
    """
    if 2 * len(features) > stats.dimensions:
        return stats
    return replace(stats, known_factor=(features - stats.mean).T / np.sqrt(len(features) - 1))


def save_stats(path: Path, stats: GaussianStats) -> None:
    """Write ``mu`` and ``sigma``, the arrays that pytorch-fid reads, with ``count`` and ``provenance`` (JSON) beside them."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=stats.mean,
        sigma=stats.covariance,
        count=np.array(-1 if stats.count is None else stats.count),
        provenance=np.array(json.dumps(stats.provenance, sort_keys=True)),
    )
    write_atomically(path, buffer.getvalue())


def load_stats(path: Path, *, made_by: str | None = None) -> GaussianStats:
    """Return the statistics in ``path``, written by this program, pytorch-fid, clean-fid or TTUR.

    ``made_by`` is the name of the extractor behind another program's file, which does not contain it.

    Raises UserError for a file without valid statistics, or without provenance where ``made_by`` is None.
    """

    def invalid(problem: str) -> UserError:
        return UserError(f"{path}: {problem}.")

    try:
        entries = read_arrays(path, ("mu", "sigma", "count", "provenance"))
    except OSError as error:
        raise invalid(f"cannot be read ({error.strerror or error})") from None
    except ValueError:
        raise invalid("no statistics file (.npz of numeric arrays), or a damaged one") from None
    if "mu" not in entries or "sigma" not in entries:
        raise invalid("contains no statistics. Expected the arrays mu and sigma, as in pytorch-fid's files")
    mean, covariance = entries["mu"], entries["sigma"]
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
        raise invalid(f"mu is {mean.dtype} {mean.shape}, sigma {covariance.dtype} {covariance.shape}. Expected (D,) and (D, D)")
    if min(mean.dtype.itemsize, covariance.dtype.itemsize) < 4:
        raise invalid(
            f"mu is {mean.dtype}, sigma {covariance.dtype}: float16 has too few digits for a covariance, whose small variances"
            " become negative. Make the file again in float32 or float64"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise invalid("contains numbers that are not finite")
    if problem := _covariance_problem(covariance):
        raise invalid(f"sigma is no covariance: {problem}. Make the file again, with sums in float32 or float64")
    provenance, count = _provenance(path, entries)
    if not provenance:
        if made_by is None:
            raise invalid(
                "the extractor that made it is unknown. Name it, such as --made-by inception-pytorch-fid, or for training"
                " evaluation.reference_made_by=inception-pytorch-fid"
            )
        provenance = {"extractor": {"extractor": made_by}, "origin": "another program's statistics file"}
    return GaussianStats(mean, covariance, count, provenance)


def _covariance_problem(sigma: Matrix) -> str | None:
    """Return what keeps a finite matrix from being a covariance, beyond rounding; None for a covariance."""
    scale = np.abs(sigma).max(initial=0.0)
    if scale == 0:
        return None
    scaled = sigma / scale  # whose norm does not overflow
    tolerance = _ROUNDING * float(np.linalg.norm(scaled))
    if (asymmetry := float(np.linalg.norm(scaled - scaled.T))) > tolerance:
        return f"it is not symmetric (it differs from its transpose by {asymmetry / np.linalg.norm(scaled):.1g} of its norm)"
    try:
        scipy.linalg.cholesky(scaled + tolerance * np.eye(len(scaled)), lower=True)
    except scipy.linalg.LinAlgError:
        least = float(scipy.linalg.eigvalsh(scaled)[0])  # takes seconds, unlike the factor
        if least < -tolerance:
            return f"its least eigenvalue is {least * scale:.3g}, a negative variance"
    return None


def _provenance(path: Path, entries: dict[str, NDArray[Any]]) -> tuple[dict[str, Any], int | None]:
    """Return provenance and number of images of a statistics file; ({}, None) for another program's."""
    if "provenance" not in entries:
        return {}, None
    try:
        provenance = parse_json(str(entries["provenance"]))
        count = int(entries["count"]) if "count" in entries else -1
        assert all(isinstance(provenance.get(key, {}), dict) for key in ("extractor", "images"))
        shape = provenance.get("images", {}).get("image", [0, 0, 0])
        assert len(shape) == 3 and all(isinstance(side, int) for side in shape)
    except (ValueError, TypeError, AttributeError, AssertionError, OverflowError):
        raise UserError(f"{path}: its provenance is damaged. Make the file again with python -m eval reference.") from None
    return provenance, count if count > 1 else None
