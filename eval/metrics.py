"""Metrics as pure functions of features and logits: Frechet distance, inception score, KID, measures by nearest neighbours."""

from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import torch
from numpy.typing import NDArray

from eval.protocols import SEED
from eval.statistics import Accumulator, GaussianStats
from gan.utils.errors import UserError

Floats = NDArray[np.floating[Any]]
_NOISE = 1e-6  # distances below this part of a vector's length are rounding of float32 features


def _check(name: str, values: Floats, minimum: int) -> None:
    """Raise UserError for fewer than ``minimum`` rows, or values that are not finite."""
    if len(values) < minimum:
        raise UserError(f"{name}: needs at least {minimum} images, not {len(values)}.")
    if not np.isfinite(values).all():
        raise UserError(f"{name}: features are not finite: the images or the extractor's weights are damaged.")


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Return the squared Frechet distance of two Gaussians (Dowson & Landau 1982), computed in float64.

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)); with Inception's features it is the FID (Heusel et al.
    2017). With S_b = R R^T the last trace is the sum of the square roots of the eigenvalues of R^T S_a R, which is
    symmetric. R is stored in its GaussianStats, so that a reference is factorized once. Nothing is added to the diagonals. A
    distance that rounding makes negative is 0.
    The cost is about D^3 operations for R^T S_a R and 4/3 D^3 for its eigenvalues.

    Raises UserError for two different dimensions, or numbers so large that the distance is not finite.
    """
    if a.dimensions != b.dimensions:
        raise UserError(f"statistics of {a.dimensions} and of {b.dimensions} features do not compare: use one extractor.")
    if _factor_cost(a) < _factor_cost(b):
        a, b = b, a
    # The eigenvalues ascend. Those beyond the product's highest possible rank are rounding errors, whose square roots would
    # add up; rounding also makes some near zero negative.
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            eigenvalues = scipy.linalg.eigvalsh(_congruent(a.covariance, b.factor), overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:  # the product is beyond the range of numbers
        raise _not_finite() from None
    eigenvalues = eigenvalues[-min(_max_rank(a), _max_rank(b)) :].clip(min=0)
    difference = a.mean - b.mean
    with np.errstate(over="ignore", invalid="ignore"):
        traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(eigenvalues).sum()
        distance = float(difference @ difference + traces)
    if not np.isfinite(distance):
        raise _not_finite()
    return max(distance, 0.0)


def _not_finite() -> UserError:
    return UserError("the Frechet distance is not finite: a statistics file or the extractor's weights are damaged.")


def _congruent(covariance: Floats, factor: Floats) -> Floats:
    """Return R^T S R; only its lower triangle is valid."""
    rows, columns = factor.shape
    if rows != columns or scipy.linalg.bandwidth(factor)[1] > 0:
        product: Floats = factor.T @ covariance @ factor
        return product
    # With R triangular and S symmetric, LAPACK needs a quarter of the operations. S.T equals S and has the column order
    # that LAPACK expects.
    result, _ = scipy.linalg.lapack.dsygst(covariance.T, factor, itype=2, lower=1)
    return np.asarray(result)


def _factor_cost(stats: GaussianStats) -> tuple[bool, int]:
    """Return a sort key: a known factor first, the narrower the better; then full rank, which Cholesky factorizes."""
    if stats.known_factor is not None:
        return False, stats.known_factor.shape[1]
    return True, -_max_rank(stats)


def _max_rank(stats: GaussianStats) -> int:
    """Return the highest rank that the covariance can have."""
    return stats.dimensions if stats.count is None else min(stats.dimensions, stats.count - 1)


def inception_score(logits: Floats, splits: int = 1, seed: int = SEED) -> tuple[float, float]:
    """Return the inception score (Salimans et al. 2016) of logits (N, classes), computed in float64.

    It is exp of the mean KL divergence between p(y|x) and p(y). The mean and standard deviation (ddof=0) are over
    ``splits`` equal parts of the images, which are shuffled by ``seed`` first: images ordered by class would score lower.

    Raises UserError for fewer images than splits, or logits that are not finite.
    """
    _check("inception score", logits, max(splits, 1))
    shuffled = logits[np.random.RandomState(seed).permutation(len(logits))].astype(np.float64)
    scores = []
    for index in range(splits):
        part = shuffled[index * len(shuffled) // splits : (index + 1) * len(shuffled) // splits]
        log_p = part - scipy.special.logsumexp(part, axis=1, keepdims=True)
        log_mean = scipy.special.logsumexp(log_p, axis=0) - np.log(len(part))
        scores.append(float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean())))
    return float(np.mean(scores)), float(np.std(scores))


def kid(a: Floats, b: Floats, subsets: int = 100, size: int = 1000, seed: int = SEED) -> tuple[float, float]:
    """Return the KID (Binkowski et al. 2018) of features (N, D) and (M, D): unbiased squared MMD, kernel (x.y / D + 1)^3.

    The mean and standard deviation (ddof=0) are over ``subsets`` pairs of ``size`` images, drawn without replacement by
    ``seed``.

    Raises UserError for fewer than ``size`` or 2 images, or features that are not finite.
    """
    _check("KID", a, max(size, 2))
    _check("KID", b, max(size, 2))
    draw = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = a[draw.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[draw.choice(len(b), size, replace=False)].astype(np.float64)
        within = sum(float(k.sum() - np.trace(k)) for k in (_cubic(x, x), _cubic(y, y))) / (size * (size - 1))
        values.append(within - 2 * float(_cubic(x, y).mean()))
    return float(np.mean(values)), float(np.std(values))


def _cubic(x: Floats, y: Floats) -> Floats:
    kernel: Floats = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def precision_recall(generated: Floats, real: Floats, neighbours: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019) of features (N, D) and (M, D).

    Precision is the share of generated images inside the k-nearest-neighbour balls of the real ones; recall is the share
    of real images inside those of the generated ones. The computation is torch-fidelity's, on float64: in float32 its
    distances between near images lose all digits.

    Raises UserError for fewer than k + 1 images, or features that are not finite.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    _check("precision and recall", generated, neighbours + 1)
    _check("precision and recall", real, neighbours + 1)
    fake, true = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (generated, real))
    precision, recall = calculate_precision_recall_part(fake, true, neighborhood=neighbours, batch_size=1000)
    return float(precision), float(recall)


def density_coverage(generated: Floats, real: Floats, neighbours: int = 5) -> tuple[float, float]:
    """Return density and coverage (Naeem et al. 2020, Eq. 4 and 5) of features (N, D) and (M, D), computed in float64.

    Each real image has a ball that reaches to its k-th nearest other real image. Density is the number of balls that hold a
    generated image, as a mean over the generated images, divided by k: it can exceed 1. Coverage is the share of balls that
    hold any generated image. As in the authors' code, a ball's surface is not in it.

    Raises UserError for fewer than k + 1 real images, no generated one, or features that are not finite.
    """
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    _check("density and coverage", generated, 1)
    _check("density and coverage", real, neighbours + 1)
    fake, true = (np.asarray(x, dtype=np.float64) for x in (generated, real))
    radii = NearestNeighbors(n_neighbors=neighbours).fit(true).kneighbors()[0][:, -1]  # M; an image is not its own neighbour
    inside, covered = 0, np.zeros(len(true), dtype=bool)
    # Rounding is no neighbourhood: equal images have balls without size, and a copy of a ball's neighbour is on its surface.
    radii = _without_noise(radii, true) * (1 - 1e-9)
    for distances in pairwise_distances_chunked(fake, true):  # part of N x M
        held = distances < radii
        inside += int(held.sum())
        covered |= held.any(0)
    return inside / (neighbours * len(fake)), float(covered.mean())


def _without_noise(distances: Floats, points: Floats) -> Floats:
    """Return the ``distances`` of ``points`` (N, D), each 0 where it is the rounding of the expanded sum of squares."""
    return np.where(distances > _NOISE * np.linalg.norm(points, axis=1), distances, 0.0)


def copying_statistic(generated: Floats, held_out: Floats, training: Floats) -> float:
    """Return whether generated images lie nearer to training images than held-out real images do, as a z-score.

    The data-copying test of Meehan et al. 2020 with a single cell: Z_U, the Mann-Whitney U of the distances of N generated
    images to their nearest training image, against those of M held-out ones, less its mean and divided by its deviation under
    equal distributions (with the correction for ties). Far below 0: generated images are nearer, as copies are. Far above 0:
    they are farther away, as of a generator that fits badly, which can hide copies. A diagnostic, not a proof.

    Raises UserError for a set without images, or features that are not finite.
    """
    from scipy.stats import rankdata  # as much to import as all else that a training takes from scipy
    from sklearn.neighbors import NearestNeighbors

    for values in (generated, held_out, training):
        _check("copying", values, 1)
    index = NearestNeighbors(n_neighbors=1).fit(np.asarray(training, dtype=np.float64))
    sets = [np.asarray(x, dtype=np.float64) for x in (generated, held_out)]
    distances = [_without_noise(index.kneighbors(x)[0][:, 0], x) for x in sets]
    ranks = rankdata(np.concatenate(distances))
    n, m = map(len, distances)
    u = ranks[:n].sum() - n * (n + 1) / 2
    ties = np.unique(ranks, return_counts=True)[1].astype(np.float64)
    variance = n * m / 12 * (n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1)))
    return float((u - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def fid_infinity(generated: Floats, reference: GaussianStats, start: int = 5000, points: int = 10, seed: int = SEED) -> float:
    """Return FID-infinity (Chong & Forsyth 2020) of generated features (N, D): the Frechet distance extrapolated to N = inf.

    The bias of the distance falls as 1/N, so a line through the distances at ``points`` sample sizes against 1/N gives
    the value at 1/N = 0. The sizes are evenly spaced from ``start`` to N; the samples are nested, in an order shuffled by
    ``seed`` (the paper draws each sample anew). ``start`` is 5,000 as in the paper: below about 2.5 D images the bias is
    not linear and the result too low. The bias of the reference remains.

    Raises UserError for fewer than 2 * ``start`` images, or features that are not finite.
    """
    _check("FID-infinity", generated, 2 * start)
    order = np.random.RandomState(seed).permutation(len(generated))
    sizes = np.linspace(start, len(generated), points).round().astype(int)
    accumulator, distances = Accumulator(generated.shape[1]), []
    for start, end in zip([0, *sizes[:-1]], sizes, strict=True):
        accumulator.update(generated[order[start:end]])
        distances.append(frechet_distance(accumulator.stats(), reference))
    return float(np.polyfit(1 / sizes, distances, 1)[1])
