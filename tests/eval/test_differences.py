"""Differences between groups of trainings: scipy's own interval, known deviations, and when there is no verdict."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eval.differences import Group, difference, differences, pooled_scores, resampled_scores
from eval.features import Features
from eval.measurement import Reference, measure
from tests.small import PAPER

scores = st.lists(st.floats(0, 500), min_size=2, max_size=6, unique=True)


@given(scores, scores)
def test_interval_over_seeds_is_welchs(a: list[float], b: list[float]) -> None:
    found = difference(Group(a, [0.0] * len(a)), Group(b, [0.0] * len(b)), lower_is_better=True)
    expected = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)


def test_seeds_that_agree_by_chance_do_not_hide_the_sampling_error() -> None:
    # Equal values: Welch's interval has no width, but each value is known to +- 3 only.
    found = difference(Group([10.0, 10.0, 10.0], [3.0] * 3), Group([11.0, 11.0, 11.0], [4.0] * 3), lower_is_better=True)
    assert found.interval is not None and found.interval[0] < 0 < found.interval[1]
    assert found.verdict == "no verdict: the interval contains 0"
    deviation = math.sqrt((3**2 + 4**2) / 3)
    assert found.sampling_interval == pytest.approx((-1 - 1.959964 * deviation, -1 + 1.959964 * deviation), rel=1e-6)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    "a, b, lower_is_better, verdict",
    [
        ([10.0, 11.0, 12.0], [20.0, 21.0, 22.0], True, "A is better"),
        ([10.0, 11.0, 12.0], [20.0, 21.0, 22.0], False, "B is better"),
        ([10.0, 21.0], [20.0, 11.0], True, "no verdict: the interval contains 0"),
        ([1e200, 3e200], [2e200, 4.1e200], True, "no verdict: the numbers are too large for an interval"),
        ([10.0], [20.0, 21.0], True, "no verdict: one side has a single training seed"),
        ([10.0], [20.0], True, "no verdict: both sides have a single training seed"),
    ],
)
def test_verdict(a: list[float], b: list[float], lower_is_better: bool, verdict: str) -> None:
    found = difference(Group(a, [0.1] * len(a)), Group(b, [0.1] * len(b)), lower_is_better=lower_is_better)
    assert found.verdict == verdict
    assert (found.interval is None) == (min(len(a), len(b)) == 1)


def random_features(count: int, seed: int, logits: bool = True) -> Features:
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(count, 5)).astype(np.float32)
    return Features(values, draw.normal(size=(count, 4)).astype(np.float32) if logits else None, {"seed": seed}, {})


def test_pooled_scores_are_those_of_the_protocol() -> None:
    real, fake = random_features(200, 0), random_features(PAPER.total, 1)
    reference = Reference(real)
    found = pooled_scores(fake, reference, PAPER)
    assert found["fid"] == pytest.approx(measure(fake, reference, PAPER)["pooled"]["fid"], rel=1e-9)
    assert set(found) == {"fid", "inception_score", "kid"}
    assert set(pooled_scores(random_features(100, 1, logits=False), reference, PAPER)) == {"fid", "kid"}


def test_bootstrap_deviation_is_that_over_fresh_samples() -> None:
    """The spread over bootstrap samples of one set estimates the spread over sets, which is measured here directly."""
    reference = Reference(random_features(400, 0))
    fresh = [pooled_scores(random_features(300, seed), reference, PAPER) for seed in range(1, 60)]
    resampled = list(resampled_scores(random_features(300, 1), reference, PAPER, 60))
    for name in ("fid", "inception_score"):
        ratio = np.std([s[name] for s in resampled], ddof=1) / np.std([s[name] for s in fresh], ddof=1)
        assert 0.5 < ratio < 2


def test_only_metrics_of_all_trainings_are_compared() -> None:
    one, two = {"fid": 1.0, "kid": 0.1}, {"fid": 2.0, "kid": 0.2, "inception_score": 3.0}
    assert set(differences([one, one], [one, one], [two], [two])) == {"fid", "kid"}
