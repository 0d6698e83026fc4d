"""Scores under a protocol: generated images against a reference, real images as a floor, and two sets of images."""

import logging
from collections.abc import Sized
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.features import Features
from eval.metrics import (
    Floats,
    copying_statistic,
    density_coverage,
    fid_infinity,
    frechet_distance,
    inception_score,
    kid,
    precision_recall,
)
from eval.protocols import NEIGHBOURHOOD, SEED, Protocol
from eval.statistics import Accumulator, GaussianStats, gaussian_stats, with_feature_factor
from gan.utils.errors import UserError

log = logging.getLogger(__name__)

Result = dict[str, Any]
HELD_OUT = "held-out images"
CHOSEN = "chosen"  # in the identity of images: which of a set they are, where a protocol chose them before extraction
# k of density and coverage, as in Naeem et al. 2020. No setting of a protocol: released ones may not change.
DENSITY_NEIGHBOURS = 5


class Reference:
    """The real images that generated ones are compared with: their features, or only mean and covariance."""

    def __init__(self, known: Features | GaussianStats) -> None:
        self.known, self.extractor = known, known.extractor
        self.features = known if isinstance(known, Features) else None
        self._subsets: dict[int, tuple[Features, GaussianStats]] = {}  # by the protocol's number of real images

    def identity(self, protocol: Protocol) -> dict[str, Any]:
        """Return the identity of the images that ``protocol`` compares with."""
        if isinstance(self.known, GaussianStats):
            return self.known.identity
        images = {key: value for key, value in self.known.images.items() if key != CHOSEN}
        return {"images": images, "count": protocol.chosen(len(self.known))}

    def subset(self, protocol: Protocol) -> tuple[Features | None, GaussianStats]:
        """Return the features and statistics of the images that ``protocol`` compares with; repeated calls share them."""
        if isinstance(self.known, GaussianStats):
            return None, self.known
        count = protocol.chosen(len(self.known))
        if count not in self._subsets:
            chosen = self.known[_split_reference(self.known, protocol)[0]]
            stats = with_feature_factor(gaussian_stats(chosen.values), chosen.values)
            self._subsets[count] = chosen, stats
        return self._subsets[count]


def check_reference_size(real: int, protocol: Protocol) -> None:
    """Raise UserError where a reference of ``real`` images is too small for ``protocol``."""
    if real < 2:
        raise UserError("the reference is one image. A covariance needs at least 2, a score thousands.")
    if protocol.reference is not None and real < protocol.reference:
        raise UserError(
            f"protocol {protocol.name}: compares with {protocol.reference:,} real images, the reference has {real:,}."
        )


def check_held_out_size(held_out: int, protocol: Protocol) -> None:
    """Raise UserError where ``held_out`` images are too few for a floor under ``protocol``."""
    if held_out < (fewest := _fewest_scored(protocol)):
        raise UserError(f"--floor: protocol {protocol.name} needs at least {fewest} held-out images, not {held_out}.")


def _fewest_scored(protocol: Protocol) -> int:
    """Return the number of images below which ``protocol`` gives no score."""
    return max(protocol.splits, protocol.neighbours + 1, 2)


def warn_of_few_images(what: str, images: GaussianStats | Sized, dimensions: int) -> None:
    """Log a warning where ``images`` are too few for a stable Frechet distance, as far as statistics say their number."""
    count = images.count if isinstance(images, GaussianStats) else len(images)
    if count is not None and count <= dimensions:
        log.warning(
            f"{what}: {count:,} images are too few for a stable distance. Their covariance of {dimensions:,} features is"
            " singular, and the distance is biased upwards; compare it only with distances of as many images."
        )


def check_same_extractor(expected: dict[str, Any], found: dict[str, Any], what: str) -> None:
    """Raise UserError where ``what`` is by another extractor, as far as its identity ``found`` is known."""
    for key, value in expected.items():
        if key in found and found[key] != value:
            raise UserError(
                f"{what}: made by another extractor ({key}: {found[key]}, here {value}). Scores of two extractors do not compare:"
                " choose the same --extractor and --extractor-weights, or make the statistics again."
            )


def _split_reference(features: Features, protocol: Protocol) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the indices of the images that ``protocol`` compares with, in the data's order, and of the others, shuffled."""
    check_reference_size(len(features), protocol)
    return split_images(len(features), protocol)


def split_images(total: int, protocol: Protocol) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the indices that ``protocol`` chooses out of ``total`` images, in their order, and of the others, shuffled."""
    wanted = protocol.chosen(total)
    if wanted == total:
        return np.arange(total), np.arange(0)
    order = np.random.RandomState(protocol.seed).permutation(total)
    return np.sort(order[:wanted]), order[wanted:]


def measure(features: Features, reference: Reference, protocol: Protocol, held_out: Features | None = None) -> Result:
    """Return the scores of the first ``protocol.total`` images.

    ``fid`` and ``inception_score`` are {"mean", "std", "values"} over runs, ``kid`` is over subsets, and ``pooled`` has the
    scores of all images together. ``copying`` compares with real images that are ``held_out`` from training. A metric that
    the extractor or the images do not allow is None.

    Raises UserError for too few images, features that are not finite, or a reference of another extractor.
    """
    if len(features) < protocol.total:
        raise UserError(f"protocol {protocol.name}: scores {protocol.total:,} images, there are {len(features):,}.")
    check_same_extractor(features.extractor, reference.extractor, "reference")
    real, real_stats = reference.subset(protocol)
    distances, scores, pooled = [], [], Accumulator(real_stats.dimensions)
    for run in range(protocol.runs):
        part = features[run * protocol.samples : (run + 1) * protocol.samples]
        own = Accumulator(real_stats.dimensions).update(part.values)
        pooled.merge(own)
        distances.append(frechet_distance(with_feature_factor(own.stats(), part.values), real_stats))
        if part.logits is not None:
            scores.append(inception_score(part.logits, protocol.splits, protocol.seed))
    result: Result = {"fid": _over_runs(distances), "inception_score": _over_runs([mean for mean, _ in scores])}
    result |= {"kid": None, "copying": None}
    if scores and protocol.runs == 1 and protocol.splits > 1:
        result["inception_score"]["std"] = scores[0][1]  # over splits, the only deviation of a single run
    generated = features[: protocol.total].values
    result["pooled"] = {
        "fid": distances[0] if protocol.runs == 1 else frechet_distance(pooled.stats(), real_stats),
        "fid_infinity": None,
        **dict.fromkeys(("precision", "recall", "density", "coverage")),
    }
    if len(generated) >= 2 * protocol.infinity_start:
        result["pooled"]["fid_infinity"] = fid_infinity(
            generated, real_stats, protocol.infinity_start, protocol.infinity_points, protocol.seed
        )
    if real is not None:
        result["kid"] = _kid(generated, real.values, protocol.kid_subsets, protocol.kid_size, protocol.seed)
        count = min(protocol.neighbourhood, len(generated), len(real))
        chosen = np.random.RandomState(protocol.seed).permutation(len(real))[:count]
        result["pooled"] |= _neighbourhoods(generated[:count], real.values[chosen], protocol.neighbours)
    if reference.features is not None and held_out is not None:
        check_same_extractor(reference.extractor, held_out.extractor, "held-out images")
        training = reference.features if protocol.at_most is None else real
        assert training is not None
        result["copying"] = _copying(generated, held_out.values, training.values, protocol)
    return result


def _neighbourhoods(generated: Floats, real: Floats, neighbours: int) -> Result:
    """Return the scores by nearest neighbours; each pair only where there are more images than its k."""
    result: Result = {"neighbourhood": len(generated)}
    if min(len(generated), len(real)) > neighbours:
        result["precision"], result["recall"] = precision_recall(generated, real, neighbours)
    if len(real) > DENSITY_NEIGHBOURS:
        density, coverage = density_coverage(generated, real, DENSITY_NEIGHBOURS)
        result |= {"density": density, "coverage": coverage, "density_neighbours": DENSITY_NEIGHBOURS}
    return result


def _copying(generated: Floats, held_out: Floats, training: Floats, protocol: Protocol) -> Result:
    """Return the copying statistic of at most ``protocol.neighbourhood`` images of each kind to all ``training`` images."""
    limit = protocol.neighbourhood
    chosen = np.random.RandomState(protocol.seed).permutation(len(held_out))[:limit]
    return {
        "statistic": "Z_U of Meehan et al. 2020, one cell: Mann-Whitney U of distances to the nearest reference image",
        "z": copying_statistic(generated[:limit], held_out[chosen], training),
        "counts": [min(limit, len(generated)), len(chosen), len(training)],  # generated, held out, reference
    }


def _kid(generated: Floats, real: Floats, subsets: int, size: int, seed: int) -> Result:
    """Return KID over subsets of ``size`` images, or of all images where there are fewer.

    The deviation is None where each subset is the whole of both sets: the subsets do not vary, so it is unknown, not zero.
    """
    size = min(size, len(generated), len(real))
    mean, deviation = kid(generated, real, subsets, size, seed)
    varies = size < max(len(generated), len(real))
    return {"mean": mean, "std": deviation if varies else None, "subsets": subsets, "size": size}


def _over_runs(values: list[float]) -> Result | None:
    if not values:
        return None
    # The deviation over a single run is unknown, not zero.
    return {"mean": float(np.mean(values)), "std": float(np.std(values)) if len(values) > 1 else None, "values": values}


def floor(reference: Reference, protocol: Protocol, held_out: Features | None = None) -> Result | None:
    """Return the scores of real images treated as generated ones: what a perfect generator would reach.

    The real images are ``held_out`` where given, else the images of the reference that the protocol does not compare with,
    else images that are taken out of the reference, which then is smaller. There are as many runs of ``protocol.samples``
    as the images suffice for; the result has the sizes. Returns None where the reference has too few images or no features.
    """
    if reference.features is None:
        return None
    everything = reference.features
    if protocol.at_most is not None:  # the others may not have been extracted
        everything = everything[split_images(len(everything), protocol)[0]]
    chosen, unused = _split_reference(everything, protocol)
    if held_out is not None:
        check_same_extractor(everything.extractor, held_out.extractor, "held-out images")
        # Shuffled like the others: many sets are sorted by class, and a run of one class scores far worse.
        pool = held_out[np.random.RandomState(protocol.seed).permutation(len(held_out))]
        source = HELD_OUT
    elif len(unused) >= protocol.samples:
        pool, source = everything[unused], "the reference's images that are not compared with"
    else:
        # At most half of the images are taken out, so that the rest still serves as a reference.
        order = np.random.RandomState(protocol.seed).permutation(len(everything))
        size = min(protocol.samples, len(everything) // 2)
        taken = size * max(1, min(protocol.runs, len(everything) // 2 // max(size, 1)))
        pool, chosen = everything[order[:taken]], np.sort(order[taken:])
        source = "images taken out of the reference"
    samples = min(protocol.samples, len(pool))
    runs = min(protocol.runs, len(pool) // max(samples, 1))
    if samples < _fewest_scored(protocol) or len(chosen) <= protocol.neighbours:
        return None
    settings = asdict(protocol) | {"runs": runs, "samples": samples, "reference": None}
    result = measure(pool, Reference(everything[chosen]), Protocol(**settings))
    return result | {"source": source, "runs": runs, "samples": samples, "reference": len(chosen), "images": pool.images}


def held_out_identity(reference: Reference, held_out: Features | None) -> dict[str, Any] | None:
    """Return what a record says of the ``held_out`` images that it was made with; None where there were none."""
    return held_out.images if held_out is not None and reference.features is not None else None


def make_record(
    features: Features,
    reference: Reference,
    protocol: Protocol,
    floor: Result | None,
    provenance: dict[str, Any],
    held_out: Features | None = None,
) -> Result:
    """Return scores, floor and provenance: everything in a record of scores.jsonl that depends on the protocol."""
    return {
        "protocol": protocol.name,
        "scores": measure(features, reference, protocol, held_out),
        "floor": floor,
        "provenance": {
            "protocol": protocol.identity(),
            "extractor": features.extractor,
            "reference": reference.identity(protocol),
            "generated": features.images,
            "floor": held_out_identity(reference, held_out),
            "deviation": "ddof=0: over runs of one generator (IS over splits where there is one run), KID over subsets",
            **provenance,
        },
    }


def compare_images(generated: Features | GaussianStats, real: Features | GaussianStats, *, splits: int, kid_size: int) -> Result:
    """Return every score of one set of images against another that the numbers of images allow; None for the others."""
    features, stats = _with_stats(generated)
    real_features, real_stats = _with_stats(real)
    result: Result = {
        "fid": frechet_distance(stats, real_stats),
        "inception_score": None,
        "kid": None,
        **dict.fromkeys(("precision", "recall", "density", "coverage")),
        "counts": [stats.count, real_stats.count],
    }
    if features is not None and features.logits is not None and len(features) >= splits:
        mean, deviation = inception_score(features.logits, splits)
        result["inception_score"] = {"mean": mean, "std": deviation, "splits": splits}
    if features is not None and real_features is not None:
        result["kid"] = _kid(features.values, real_features.values, 100, kid_size, SEED)
        count = min(NEIGHBOURHOOD, len(features), len(real_features))
        if count > 3:
            chosen = [x.values[np.random.RandomState(SEED).permutation(len(x))[:count]] for x in (features, real_features)]
            result |= _neighbourhoods(chosen[0], chosen[1], 3)
    return result


def _with_stats(images: Features | GaussianStats) -> tuple[Features | None, GaussianStats]:
    return (None, images) if isinstance(images, GaussianStats) else (images, gaussian_stats(images.values))
