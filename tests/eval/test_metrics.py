"""Scores against closed forms, direct definitions and the reference libraries' functions."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import (
    copying_statistic,
    density_coverage,
    fid_infinity,
    frechet_distance,
    inception_score,
    kid,
    precision_recall,
)
from eval.statistics import GaussianStats, gaussian_stats, with_feature_factor
from gan.utils.errors import UserError


def features(count: int, dimensions: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    draw = np.random.RandomState(seed)
    mixed = draw.randn(count, dimensions) @ draw.randn(dimensions, dimensions)
    return (scale * mixed + shift).astype(np.float32)


def test_distance_of_equal_covariances_is_that_of_the_means() -> None:
    covariance = np.cov(features(50, 6), rowvar=False)
    a, b = GaussianStats(np.zeros(6), covariance), GaussianStats(np.arange(6.0), covariance)
    assert frechet_distance(a, b) == pytest.approx(55, rel=1e-12)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=8))
def test_distance_of_independent_features_is_that_of_their_deviations(deviations: list[tuple[float, float]]) -> None:
    a, b = np.array(deviations).T
    zero = np.zeros(len(a))
    distance = frechet_distance(GaussianStats(zero, np.diag(a**2)), GaussianStats(zero, np.diag(b**2)))
    assert distance == pytest.approx(((a - b) ** 2).sum(), rel=1e-6, abs=1e-6 * max(1.0, a.max() ** 2, b.max() ** 2))


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 20), st.integers(0, 1000))
def test_distance_is_symmetric_and_the_nuclear_norm_of_the_centred_features(n: int, m: int, dimensions: int, seed: int) -> None:
    # tr((S_a S_b)^(1/2)) is the sum of the singular values of X_a X_b^T, which needs no square root of a matrix.
    x, y = features(n, dimensions, seed).astype(np.float64), features(m, dimensions, seed + 1, shift=1).astype(np.float64)
    a, b = gaussian_stats(x), gaussian_stats(y)
    centred = [(z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y)]
    cross = scipy.linalg.svdvals(centred[0] @ centred[1].T).sum()
    total = np.trace(a.covariance + b.covariance)
    expected = ((a.mean - b.mean) ** 2).sum() + total - 2 * cross
    same = pytest.approx(expected, abs=1e-6 * (total + 1))
    assert frechet_distance(a, b) == same
    assert frechet_distance(b, a) == same
    # Also with b's factor at hand and not a's, and the other way round, and with few features as their own factor.
    assert frechet_distance(gaussian_stats(x), b) == same
    assert frechet_distance(a, gaussian_stats(y)) == same
    assert frechet_distance(with_feature_factor(gaussian_stats(x), x), gaussian_stats(y)) == same


@pytest.mark.parametrize(("count", "dimensions"), [(500, 64), (40, 64), (3, 64), (65, 64)])
def test_distance_of_a_set_to_itself_is_zero_also_where_its_covariance_is_singular(count: int, dimensions: int) -> None:
    a = gaussian_stats(features(count, dimensions))
    assert 0 <= frechet_distance(a, gaussian_stats(features(count, dimensions))) <= 1e-6


def test_distance_with_features_that_never_vary_is_that_without_them() -> None:
    # ReLUs that are dead for every image leave zero rows, for which there is no Cholesky factor.
    a, b = features(300, 20), features(300, 20, seed=1)
    dead = np.zeros((300, 5), np.float32)
    with_dead = frechet_distance(*(gaussian_stats(np.hstack([x, dead])) for x in (a, b)))
    assert with_dead == pytest.approx(frechet_distance(gaussian_stats(a), gaussian_stats(b)), rel=1e-9)


def test_distance_does_not_depend_on_the_order_of_images() -> None:
    a, b = features(2500, 96), gaussian_stats(features(2000, 96, seed=1, shift=0.5))
    shuffled = a[np.random.RandomState(3).permutation(len(a))]
    assert frechet_distance(gaussian_stats(shuffled), b) == pytest.approx(frechet_distance(gaussian_stats(a), b), rel=1e-9)


def test_distance_is_both_peers() -> None:
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = features(600, 48), features(500, 48, seed=1, shift=1)
    mine = frechet_distance(gaussian_stats(a), gaussian_stats(b))
    statistics = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    assert mine == pytest.approx(fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"], rel=1e-8)
    one, two = ((s["mu"], s["sigma"]) for s in statistics)
    assert mine == pytest.approx(calculate_frechet_distance(*one, *two), rel=1e-8)


def test_distance_of_samples_of_known_gaussians_is_the_closed_form() -> None:
    draw = np.random.RandomState(0)
    a = gaussian_stats(draw.randn(200_000, 4).astype(np.float32) * [1, 2, 3, 4])
    b = gaussian_stats(draw.randn(200_000, 4).astype(np.float32) * [4, 2, 3, 1] + 1)
    assert frechet_distance(a, b) == pytest.approx(4 + 9 + 9, rel=0.01)


def test_distance_refuses_other_dimensions() -> None:
    with pytest.raises(UserError, match="4 and of 5"):
        frechet_distance(gaussian_stats(features(9, 4)), gaussian_stats(features(9, 5)))


def test_inception_score_of_equal_predictions_is_one() -> None:
    mean, deviation = inception_score(np.tile([3.0, 1.0, -2.0], (50, 1)), 5)
    assert mean == pytest.approx(1)
    assert deviation == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 9), st.integers(1, 5))
def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes(classes: int, each: int) -> None:
    logits = np.repeat(np.eye(classes) * 1000, each, axis=0)
    assert inception_score(logits)[0] == pytest.approx(classes, rel=1e-9)


def test_inception_score_is_torch_fidelitys_and_does_not_mind_the_order_of_classes() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.RandomState(0).randn(205, 30).astype(np.float32) * 3
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10)
    assert inception_score(logits, 10) == pytest.approx(
        (theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-10
    )
    ordered = np.repeat(np.eye(10) * 1000, 100, axis=0)
    assert inception_score(ordered, 10)[0] > 9


def test_kid_is_its_definition_on_one_subset_of_all() -> None:
    x, y = features(7, 5).astype(np.float64), features(7, 5, seed=1).astype(np.float64)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 5 + 1) ** 3)

    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    across = sum(k(a, b) for a in x for b in y) / 49
    assert kid(x, y, 3, 7) == pytest.approx((within - 2 * across, 0), abs=1e-9)


def test_kid_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = features(150, 20), features(130, 20, seed=1, shift=0.5)
    theirs = kid_features_to_metric(
        torch.from_numpy(a).double(), torch.from_numpy(b).double(), kid_subsets=20, kid_subset_size=60, verbose=False
    )
    assert kid(a, b, 20, 60) == pytest.approx(
        (theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]), rel=1e-9
    )


def test_kid_is_unbiased() -> None:
    draw = np.random.RandomState(0)
    values = [kid(*draw.randn(2, 40, 3), subsets=1, size=40)[0] for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_precision_and_recall_of_a_set_with_itself_are_one_and_with_a_far_one_zero() -> None:
    a = features(60, 8)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 1e4) == (0, 0)


def test_precision_is_of_the_generated_and_recall_of_the_real() -> None:
    draw = np.random.RandomState(0)
    left, right = draw.randn(200, 4), draw.randn(200, 4) + 100
    # Half of the real images are never generated: what is generated is right, half is missed.
    precision, recall = precision_recall(left[:100], np.concatenate([left[100:], right]))
    assert precision > 0.8
    assert 0.2 < recall < 0.34  # at most 100 of 300


@given(st.integers(1, 12), st.integers(3, 12), st.integers(1, 2), st.integers(0, 1000))
def test_density_and_coverage_are_their_definition(n: int, m: int, k: int, seed: int) -> None:
    draw = np.random.RandomState(seed)
    fake, real = draw.randint(0, 6, (n, 2)), draw.randint(0, 6, (m, 2))  # whole numbers: with ties, and exact distances

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    radii = [sorted(distance(real[i], real[j]) for j in range(m) if j != i)[k - 1] for i in range(m)]
    inside = [[distance(fake[j], real[i]) < radii[i] for i in range(m)] for j in range(n)]
    density = sum(map(sum, inside)) / (k * n)
    coverage = sum(any(inside[j][i] for j in range(n)) for i in range(m)) / m
    assert density_coverage(fake, real, k) == pytest.approx((density, coverage))


def test_density_is_of_the_generated_and_coverage_of_the_real() -> None:
    draw = np.random.RandomState(0)
    left, right = draw.randn(300, 4), draw.randn(150, 4) + 100
    density, coverage = density_coverage(left[:150], np.concatenate([left[150:], right]))
    assert 0.8 < density < 1.25, "samples of the same distribution have a density near 1"
    assert 0.45 < coverage <= 0.5, "half of the real images are never generated"


@given(st.integers(2, 30), st.integers(2, 30), st.booleans(), st.integers(0, 1000))
def test_the_copying_statistic_is_the_z_score_of_scipys_test(n: int, m: int, ties: bool, seed: int) -> None:
    draw = np.random.RandomState(seed)
    sets = [draw.randint(0, 4, (count, 3)) if ties else draw.randn(count, 3) for count in (n, m, 10)]
    generated, held_out = ([min(np.linalg.norm(x - t) for t in sets[2]) for x in own] for own in sets[:2])
    if len({round(value, 9) for value in generated + held_out}) == 1:
        assert copying_statistic(*sets) == 0  # scipy gives nan
        return
    theirs = scipy.stats.mannwhitneyu(
        np.round(generated, 9), np.round(held_out, 9), alternative="less", method="asymptotic", use_continuity=False
    )
    assert scipy.stats.norm.cdf(copying_statistic(*sets)) == pytest.approx(theirs.pvalue, rel=1e-6)


def test_training_images_with_noise_are_told_apart_from_held_out_images() -> None:
    draw = np.random.RandomState(0)
    training, held_out, other = draw.randn(400, 16), draw.randn(200, 16), draw.randn(200, 16)
    assert copying_statistic(training[:200] + 0.1 * draw.randn(200, 16), held_out, training) < -10
    assert abs(copying_statistic(other, held_out, training)) < 3
    assert copying_statistic(other + 3, held_out, training) > 10, "a generator that fits badly is far from all of them"


def test_distance_at_infinity_removes_the_bias_of_few_images() -> None:
    # As many images to a dimension as in the protocol `paper`: 10,000 of 2,048, from 5,000 on.
    truth = GaussianStats(np.zeros(200), np.eye(200))
    draws = [np.random.RandomState(seed).randn(976, 200).astype(np.float32) for seed in range(10)]
    plain = np.mean([frechet_distance(gaussian_stats(x), truth) for x in draws])
    extrapolated = np.mean([fid_infinity(x, truth, 488, 10, seed) for seed, x in enumerate(draws)])
    print(plain, extrapolated)
    assert plain > 10
    assert abs(extrapolated) < plain / 8


def test_covariances_beyond_all_numbers_are_told() -> None:
    huge = GaussianStats(np.zeros(64), 1e200 * np.eye(64))
    with pytest.raises(UserError, match="distance is not finite"):
        frechet_distance(huge, GaussianStats(np.zeros(64), 1e200 * np.eye(64)))


@pytest.mark.parametrize("mean", [1e160, np.array([0, 1e307, 1e308, -1e308, 0])])
def test_a_distance_beyond_all_numbers_is_told(mean: float | np.ndarray) -> None:
    good = gaussian_stats(features(200, 5))
    for pair in ((good, GaussianStats(mean * np.ones(5), np.eye(5))), (GaussianStats(mean * np.ones(5), np.eye(5)), good)):
        with pytest.raises(UserError, match="distance is not finite"):
            frechet_distance(*pair)


@pytest.mark.parametrize("score", ["is", "kid", "precision", "density", "infinity"])
def test_too_few_images_and_numbers_that_are_not_finite_are_told(score: str) -> None:
    def call(values: np.ndarray) -> object:
        good, moments = features(200, 5), gaussian_stats(features(200, 5))
        return {
            "is": lambda: inception_score(values, 10),
            "kid": lambda: kid(values, good, 5, 50),
            "precision": lambda: precision_recall(good, values),
            "density": lambda: density_coverage(good, values),
            "infinity": lambda: fid_infinity(values, moments, 90),
        }[score]()

    broken = features(200, 5)
    broken[7, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        call(broken)
    with pytest.raises(UserError, match="at least"):
        call(features(2, 5))


def test_equal_images_have_no_neighbours_by_rounding() -> None:
    real = np.abs(features(300, 640)).astype(np.float32)
    real[:12] = real[0]  # whose balls have no size
    fake = np.abs(features(300, 640, seed=1, shift=3.0)).astype(np.float32)
    fake[:100] = real[0]
    between, beside = (np.linalg.norm(x.astype(float)[:, None] - real.astype(float), axis=2) for x in (fake, real))
    np.fill_diagonal(beside, np.inf)
    inside = between < np.sort(beside, 1)[:, 4] * (1 - 1e-12)
    assert not inside[:100, :12].any()
    assert density_coverage(fake, real) == pytest.approx((inside.sum() / (5 * len(fake)), inside.any(0).mean()), rel=1e-12)
    assert density_coverage(real[:12], real[:12]) == (0.0, 0.0)
    assert copying_statistic(real[:100], real[100:200], real) == 0.0, "all are copies"
