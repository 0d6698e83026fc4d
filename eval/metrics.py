"""Scores as pure functions of features and logits: Frechet distance, inception score, KID, precision and recall."""

from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import torch
from numpy.typing import NDArray

from eval.statistics import Accumulator, GaussianStats
from gan.utils.errors import UserError

Floats = NDArray[np.floating[Any]]
# torch-fidelity's, so that the same features in the same order give its numbers.
SEED = 2020


def _check(name: str, values: Floats, least: int) -> None:
    if len(values) < least:
        raise UserError(f"{name}: needs at least {least} images, not {len(values)}.")
    if not np.isfinite(values).all():
        raise UserError(f"{name}: features are not finite: the images or the extractor's weights are damaged.")


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Squared Frechet distance between two Gaussians (Dowson & Landau 1982), in float64; of Inception's features: the FID
    (Heusel et al. 2017).

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)). With S_b = R R^T the last trace is the sum of the square
    roots of the eigenvalues of R^T S_a R, which is symmetric. R is kept with its Moments, so that a reference's is made
    once. Nothing is added to the diagonals. Some D^3 operations for R^T S_a R and 4/3 D^3 for its eigenvalues.

    Raises UserError when the two have different dimensions, or numbers so large that the distance is not finite.
    """
    if a.dimensions != b.dimensions:
        raise UserError(f"statistics of {a.dimensions} and of {b.dimensions} features do not compare: two extractors.")
    if _factoring(a) < _factoring(b):
        a, b = b, a
    # Ascending. Beyond the rank that the product can have they are rounding errors, whose roots would add up; and
    # rounding makes those near zero negative.
    eigenvalues = scipy.linalg.eigvalsh(_congruent(a.covariance, b.factor), overwrite_a=True, check_finite=False)
    eigenvalues = eigenvalues[-min(_rank(a), _rank(b)) :].clip(min=0)
    difference = a.mean - b.mean
    with np.errstate(over="ignore", invalid="ignore"):
        traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(eigenvalues).sum()
        distance = float(difference @ difference + traces)
    if not np.isfinite(distance):
        raise UserError("the Frechet distance is not finite: a statistics file or the extractor's weights are damaged.")
    return distance


def _congruent(covariance: Floats, factor: Floats) -> Floats:
    """R^T S R, of which the lower triangle is right."""
    rows, columns = factor.shape
    if rows != columns or scipy.linalg.bandwidth(factor)[1] > 0:
        product: Floats = factor.T @ covariance @ factor
        return product
    # With R triangular and S symmetric a quarter of the two products' work is enough; S is its own transpose, in the
    # order of columns that LAPACK wants.
    result, _ = scipy.linalg.lapack.dsygst(covariance.T, factor, itype=2, lower=1)
    return np.asarray(result)


def _factoring(moments: GaussianStats) -> tuple[bool, int]:
    """Sorts first what costs least: a factor that is there already, the narrower first; then one by Cholesky."""
    if "factor" in moments.__dict__:
        return False, moments.factor.shape[1]
    return True, -_rank(moments)


def _rank(moments: GaussianStats) -> int:
    """The most that the covariance's rank can be."""
    return moments.dimensions if moments.count is None else min(moments.dimensions, moments.count - 1)


def inception_score(logits: Floats, splits: int = 1, seed: int = SEED) -> tuple[float, float]:
    """exp of the mean KL divergence between p(y|x) and p(y) (Salimans et al. 2016), of logits (N, classes), in float64.

    Returns mean and deviation (ddof=0) over ``splits`` equal parts, shuffled by ``seed`` first, since images in the
    order of their classes score lower. Raises ValueError for fewer images than splits.
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
    """KID (Binkowski et al. 2018): squared MMD with the kernel (x.y / D + 1)^3, unbiased, of features (N, D) and (M, D).

    Returns mean and deviation (ddof=0) over ``subsets`` pairs of ``size`` images, drawn without replacement by ``seed``.
    Raises ValueError when there are fewer images than ``size``, or ``size`` is below 2.
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
    """Improved precision and recall (Kynkaanniemi et al. 2019): the share of generated images within the k-nearest-neighbour
    balls of the real ones, and of real within those of the generated, of features (N, D) and (M, D).

    torch-fidelity's function, on float64: in float32 its distances of near images lose all digits. Raises ValueError for
    fewer than k + 1 images.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    _check("precision and recall", generated, neighbours + 1)
    _check("precision and recall", real, neighbours + 1)
    fake, true = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (generated, real))
    precision, recall = calculate_precision_recall_part(fake, true, neighborhood=neighbours, batch_size=1000)
    return float(precision), float(recall)


def fid_infinity(generated: Floats, reference: GaussianStats, start: int = 5000, points: int = 10, seed: int = SEED) -> float:
    """FID-infinity (Chong & Forsyth 2020): the Frechet distance's bias falls as 1/N, so a line through its values at
    ``points`` sizes N against 1/N is read off at 1/N = 0. Generated features (N, D).

    Sizes are spaced evenly from ``start`` to all, nested, in an order shuffled by ``seed`` (the paper draws each anew).
    They start at 5,000 as in the paper: with fewer images than some 2.5 D the bias is no straight line, and the result
    too low. The reference's own bias stays. Raises ValueError for fewer than 2 ``start`` images.
    """
    _check("FID-infinity", generated, 2 * start)
    order = np.random.RandomState(seed).permutation(len(generated))
    sizes = np.linspace(start, len(generated), points).round().astype(int)
    accumulator, distances = Accumulator(generated.shape[1]), []
    for start, end in zip([0, *sizes[:-1]], sizes, strict=True):
        accumulator.update(generated[order[start:end]])
        distances.append(frechet_distance(accumulator.moments(), reference))
    return float(np.polyfit(1 / sizes, distances, 1)[1])
