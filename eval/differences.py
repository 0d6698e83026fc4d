"""Differences in score between two groups of trained generators, with 95% intervals over training seeds and samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats

from eval.features import Features
from eval.measurement import Reference
from eval.metrics import frechet_distance, inception_score, kid
from eval.protocols import Protocol
from eval.statistics import gaussian_stats, with_feature_factor

LEVEL = 0.95
LOWER_IS_BETTER = {"fid": True, "inception_score": False, "kid": True}


@dataclass(frozen=True)
class Group:
    """One metric of several trainings that differ only by their seed."""

    values: Sequence[float]  # one per training
    deviations: Sequence[float]  # standard deviation of each value over samplings of its generator

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.deviations) > 0

    @property
    def sampling_variance(self) -> float:
        """Variance of the mean value over samplings of these generators."""
        return float(np.square(self.deviations).mean()) / len(self.values)

    @property
    def variance(self) -> float:
        """Variance of the mean value over trainings and samplings. Needs at least two trainings.

        Values of different trainings also differ by sampling, so their variance contains that of sampling. With few
        trainings the estimate can by chance lie below it; the larger of the two is taken.
        """
        return max(float(np.var(self.values, ddof=1)) / len(self.values), self.sampling_variance)


@dataclass(frozen=True)
class Difference:
    """The mean of group A less that of group B, in the metric's unit."""

    a: float
    b: float
    difference: float
    interval: tuple[float, float] | None  # over trainings and samplings; None where a group has one training
    sampling_interval: tuple[float, float]  # for these trainings alone, over samplings
    seeds: tuple[int, int]
    verdict: str  # "A is better", "B is better" or "no verdict", with the reason

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def difference(a: Group, b: Group, *, lower_is_better: bool) -> Difference:
    """Return the difference of the means of two groups, with Welch's interval (unequal variances).

    The degrees of freedom are Welch-Satterthwaite's. The sampling interval is normal.
    """
    found = float(np.mean(a.values) - np.mean(b.values))
    seeds = len(a.values), len(b.values)
    half = scipy.stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(a.sampling_variance + b.sampling_variance)
    interval = None
    if min(seeds) < 2:
        verdict = f"no verdict: {'both sides have' if max(seeds) < 2 else 'one side has'} a single training seed"
    else:
        total = a.variance + b.variance
        freedom = total**2 / sum(g.variance**2 / (len(g.values) - 1) for g in (a, b)) if total else np.inf
        margin = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(total))
        interval = found - margin, found + margin
        if interval[1] < 0 or interval[0] > 0:
            verdict = "A is better" if (found < 0) == lower_is_better else "B is better"
        elif np.isfinite(margin):
            verdict = "no verdict: the interval contains 0"
        else:
            verdict = "no verdict: the numbers are too large for an interval"
    sampling = float(found - half), float(found + half)
    return Difference(float(np.mean(a.values)), float(np.mean(b.values)), found, interval, sampling, seeds, verdict)


def pooled_scores(features: Features, reference: Reference, protocol: Protocol) -> dict[str, float]:
    """Return the distance, inception score and KID of all ``features`` together, as far as extractor and reference allow."""
    real, real_stats = reference.subset(protocol)
    stats = with_feature_factor(gaussian_stats(features.values), features.values)
    scores = {"fid": frechet_distance(stats, real_stats)}
    if features.logits is not None:
        scores["inception_score"] = inception_score(features.logits)[0]
    if real is not None:
        size = min(protocol.kid_size, len(features), len(real))
        subsets = max(1, len(features) // size)  # so many that each image is drawn once on average
        scores["kid"] = kid(features.values, real.values, subsets, size, protocol.seed)[0]
    return scores


def resampled_scores(features: Features, reference: Reference, protocol: Protocol, resamples: int) -> Iterator[dict[str, float]]:
    """Yield the ``pooled_scores`` of ``resamples`` bootstrap samples of ``features``, drawn by the protocol's seed.

    Repeated images bias each score by about the same amount, so only the deviation of these scores means anything.
    """
    draw = np.random.RandomState(protocol.seed)
    for _ in range(resamples):
        yield pooled_scores(features[draw.randint(len(features), size=len(features))], reference, protocol)


def differences(
    a: Sequence[Mapping[str, float]],
    a_deviations: Sequence[Mapping[str, float]],
    b: Sequence[Mapping[str, float]],
    b_deviations: Sequence[Mapping[str, float]],
) -> dict[str, Difference]:
    """Return the difference of each metric that all trainings of both groups have; one mapping per training."""
    shared = [name for name in LOWER_IS_BETTER if all(name in scores for scores in (*a, *b))]
    return {
        name: difference(
            Group([scores[name] for scores in a], [deviation[name] for deviation in a_deviations]),
            Group([scores[name] for scores in b], [deviation[name] for deviation in b_deviations]),
            lower_is_better=LOWER_IS_BETTER[name],
        )
        for name in shared
    }
