"""Named, frozen recipes of scores: how many images, in how many runs, against which part of the reference."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eval.features import Features
from eval.metrics import (
    SEED,
    fid_infinity,
    frechet_distance,
    inception_score,
    kid,
    precision_recall,
)
from eval.statistics import Accumulator, GaussianStats, factored, gaussian_stats
from gan.utils.errors import UserError

Result = dict[str, Any]


NEIGHBOURHOOD = 10_000  # at most so many images of each kind for precision and recall, whose cost is the square


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Images are scored in ``runs`` disjoint runs of ``samples``; what a score states is the mean over runs, and their
    deviation (ddof=0, as the published ones): that of sampling one generator, not that of training several."""

    name: str
    purpose: str
    runs: int
    samples: int  # generated images in a run
    splits: int = 1  # of a run's images, for the inception score
    reference: int | None = None  # real images, drawn by `seed`; None: all
    kid_subsets: int = 100  # of all runs' images together: KID has no bias that would depend on their number
    kid_size: int = 1000  # images in a subset
    neighbours: int = 3  # of precision and recall
    neighbourhood: int = NEIGHBOURHOOD
    infinity_start: int = 5000  # smallest sample size for FID-infinity; not computed for less than twice as many images
    infinity_points: int = 10  # sample sizes
    seed: int = SEED  # of every choice and order above

    @property
    def total(self) -> int:
        """Generated images in all runs."""
        return self.runs * self.samples


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="paper", purpose="Table II of the MSN paper: 5 runs of 2,000 images", runs=5, samples=2000),
        Protocol(
            name="sngan",
            purpose="Miyato et al. 2018: IS over 10 runs of 5,000 images, FID of 5,000 against 10,000 real ones",
            runs=10,
            samples=5000,
            reference=10_000,
        ),
        Protocol(
            name="standard",
            purpose="the literature's FID: 50,000 images against all of the training set, IS over 10 splits",
            runs=1,
            samples=50_000,
            splits=10,
        ),
        Protocol(
            name="quick",
            purpose="for watching a training: 1,000 images once",
            runs=1,
            samples=1000,
            kid_size=500,
            kid_subsets=20,
        ),
    )
}


class Reference:
    """Real images as features, or no more than their moments."""

    def __init__(self, features: Features | None, moments: GaussianStats | None = None) -> None:
        """Exactly one of the two."""
        assert (features is None) != (moments is None)
        self.features, self._moments = features, moments
        self._of: dict[int | None, tuple[Features, GaussianStats]] = {}

    @cached_property
    def extractor(self) -> dict[str, Any]:
        """Identity of the extractor that made it, as far as known."""
        if self.features is not None:
            return self.features.extractor
        assert self._moments is not None
        return dict(self._moments.provenance.get("extractor", {}))

    def identity(self, protocol: Protocol) -> dict[str, Any]:
        """What a score's reference was."""
        if self.features is not None:
            return {"images": self.features.images, "count": protocol.reference or len(self.features)}
        assert self._moments is not None
        return self._moments.identity

    def part(self, protocol: Protocol) -> tuple[Features | None, GaussianStats]:
        """The images that ``protocol`` compares with, and their moments; kept, as their factor is."""
        if self.features is None:
            assert self._moments is not None
            return None, self._moments
        if protocol.reference not in self._of:
            chosen = self.features[_choice(self, protocol)[0]]
            self._of[protocol.reference] = chosen, factored(gaussian_stats(chosen.values), chosen.values)
        return self._of[protocol.reference]


def check_number(real: int, protocol: Protocol) -> None:
    """Raises UserError where a reference of ``real`` images is too small for ``protocol``."""
    if protocol.reference is not None and real < protocol.reference:
        raise UserError(
            f"protocol {protocol.name}: compares with {protocol.reference:,} real images, the reference has {real:,}."
        )


def _choice(reference: Reference, protocol: Protocol) -> tuple[Any, Any]:
    """Indices of the reference's images that a protocol compares with, in the data's order, and of those left over."""
    assert reference.features is not None
    total, wanted = len(reference.features), protocol.reference
    if wanted is None:
        return np.arange(total), np.arange(0)
    check_number(total, protocol)
    order = np.random.RandomState(protocol.seed).permutation(total)
    return np.sort(order[:wanted]), order[wanted:]


def check_same_extractor(mine: dict[str, Any], other: dict[str, Any], what: str) -> None:
    """Raises UserError where ``what`` was made by another extractor, as far as its file says."""
    for key, value in mine.items():
        if key in other and other[key] != value:
            raise UserError(
                f"{what}: made by another extractor ({key}: {other[key]}, here {value}). Scores of two do not compare;"
                " choose the same --extractor and --weights, or make the statistics again."
            )


def measure(features: Features, reference: Reference, protocol: Protocol) -> Result:
    """Scores of ``protocol.total`` images: ``fid`` and ``inception_score`` as {"mean", "std", "values"} over runs, ``kid``
    over subsets, and ``pooled`` those of all images together.

    A metric that the extractor or the reference cannot give is null. Raises UserError for too few images, numbers that
    are not finite, or a reference of another extractor.
    """
    if len(features) < protocol.total:
        raise UserError(f"protocol {protocol.name}: scores {protocol.total:,} images, there are {len(features):,}.")
    check_same_extractor(features.extractor, reference.extractor, "reference")
    real, real_moments = reference.part(protocol)
    if real_moments.dimensions != features.values.shape[1]:
        raise UserError(
            f"reference: has {real_moments.dimensions} features, the extractor {features.values.shape[1]}: made by another one."
        )
    runs: dict[str, list[float]] = {"fid": [], "inception_score": []}
    splits: list[float] = []
    pooled = Accumulator(features.values.shape[1])
    for run in range(protocol.runs):
        part = features[run * protocol.samples : (run + 1) * protocol.samples]
        own = Accumulator(features.values.shape[1]).update(part.values)
        pooled.merge(own)
        runs["fid"].append(frechet_distance(factored(own.moments(), part.values), real_moments))
        if part.logits is not None:
            mean, deviation = inception_score(part.logits, protocol.splits, protocol.seed)
            runs["inception_score"].append(mean)
            splits.append(deviation)
    result: Result = {name: _over_runs(values) for name, values in runs.items()}
    if protocol.splits > 1 and result["inception_score"] is not None and protocol.runs == 1:
        result["inception_score"]["std"] = splits[0]  # over splits, the only deviation there is
    everything = features[: protocol.total].values
    moments = pooled.moments()
    result["pooled"] = {
        "fid": runs["fid"][0] if protocol.runs == 1 else frechet_distance(moments, real_moments),
        "fid_infinity": None,
        "precision": None,
        "recall": None,
    }
    if len(everything) >= 2 * protocol.infinity_start:
        result["pooled"]["fid_infinity"] = fid_infinity(
            everything, real_moments, protocol.infinity_start, protocol.infinity_points, protocol.seed
        )
    result["kid"] = None
    if real is not None:
        size = min(protocol.kid_size, len(everything), len(real))
        mean, deviation = kid(everything, real.values, protocol.kid_subsets, size, protocol.seed)
        result["kid"] = {"mean": mean, "std": deviation, "subsets": protocol.kid_subsets, "size": size}
        count = min(protocol.neighbourhood, len(everything), len(real))
        chosen = np.random.RandomState(protocol.seed).permutation(len(real))[:count]
        precision, recall = precision_recall(everything[:count], real.values[chosen], protocol.neighbours)
        result["pooled"] |= {"precision": precision, "recall": recall, "neighbourhood": count}
    return result


def _over_runs(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    # The deviation of a single run is not zero but unknown.
    return {"mean": float(np.mean(values)), "std": float(np.std(values)) if len(values) > 1 else None, "values": values}


HELD_OUT = "held-out images"


def floor(reference: Reference, protocol: Protocol, held_out: Features | None = None) -> Result | None:
    """Real images scored as if they were generated: what a perfect generator would get. None where the reference holds
    too few images, or only moments.

    The images are ``held_out`` ones where given; else those of the reference that the protocol leaves over; else some are
    taken out of the reference, which is then smaller. As many runs as there are images for, of ``protocol.samples`` each
    where possible; what the sizes were is part of the result.
    """
    if reference.features is None:
        return None
    everything = reference.features
    chosen, left = _choice(reference, protocol)
    if held_out is not None:
        check_same_extractor(everything.extractor, held_out.extractor, "held-out images")
        # Shuffled as the others are: many sets are sorted by class, and a run of one class scores far worse.
        pool = held_out[np.random.RandomState(protocol.seed).permutation(len(held_out))]
        source = HELD_OUT
    elif len(left) >= protocol.samples:
        pool, source = everything[left], "the reference's images that are not compared with"
    else:
        # At most half of them go, so that what is left still is a reference.
        order = np.random.RandomState(protocol.seed).permutation(len(everything))
        size = min(protocol.samples, len(everything) // 2)
        taken = size * max(1, min(protocol.runs, len(everything) // 2 // max(size, 1)))
        pool, chosen = everything[order[:taken]], np.sort(order[taken:])
        source = "images taken out of the reference"
    samples = min(protocol.samples, len(pool))
    runs = min(protocol.runs, len(pool) // max(samples, 1))
    if samples < max(protocol.splits, protocol.neighbours + 1, 2) or len(chosen) <= protocol.neighbours:
        return None
    settings = asdict(protocol) | {"runs": runs, "samples": samples, "reference": None}
    result = measure(pool, Reference(everything[chosen]), Protocol(**settings))
    return result | {"source": source, "runs": runs, "samples": samples, "reference": len(chosen), "images": pool.images}


def score(
    features: Features, reference: Reference, protocol: Protocol, floor: Result | None, provenance: dict[str, Any]
) -> Result:
    """One record of scores.jsonl: scores, floor, and everything that they depend on."""
    return {
        "protocol": protocol.name,
        "scores": measure(features, reference, protocol),
        "floor": floor,
        "provenance": {
            "protocol": asdict(protocol),
            "extractor": features.extractor,
            "reference": reference.identity(protocol),
            "generated": features.images,
            "floor": floor["images"] if floor is not None and floor["source"] == HELD_OUT else None,
            "deviation": "ddof=0: over runs of one generator (IS over splits where there is one run), KID over subsets",
            **provenance,
        },
    }


def compare(
    a: tuple[Features | None, GaussianStats | None],
    b: tuple[Features | None, GaussianStats | None],
    *,
    splits: int,
    kid_size: int,
) -> Result:
    """Every score of the set ``a`` (generated) against ``b`` (real) that their kind and number allow; null where not.

    Of each set: its features, if they are at hand, and its moments.
    """
    (generated, mine), (real, theirs) = a, b
    assert mine is not None and theirs is not None
    result: Result = {
        "fid": frechet_distance(mine, theirs),
        "inception_score": None,
        "kid": None,
        "precision": None,
        "recall": None,
        "counts": [mine.count, theirs.count],
    }
    if generated is not None and generated.logits is not None and len(generated) >= splits:
        mean, deviation = inception_score(generated.logits, splits)
        result["inception_score"] = {"mean": mean, "std": deviation, "splits": splits}
    if generated is not None and real is not None:
        size = min(kid_size, len(generated), len(real))
        mean, deviation = kid(generated.values, real.values, 100, size)
        result["kid"] = {"mean": mean, "std": deviation, "subsets": 100, "size": size}
        count = min(NEIGHBOURHOOD, len(generated), len(real))
        if count > 3:
            one, two = (np.random.RandomState(SEED).permutation(len(x))[:count] for x in (generated, real))
            result["precision"], result["recall"] = precision_recall(generated.values[one], real.values[two])
            result["neighbourhood"] = count
    return result
