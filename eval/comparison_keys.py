"""Which scores are comparable, and whether a score may carry the name of a published metric."""

from collections.abc import Sequence
from typing import Any

from eval.extractors import INCEPTION_CHECKSUM, PUBLISHED_EXTRACTORS
from eval.feature_cache import digest

# Keys of a score's provenance that must be equal in comparable scores. The others say which generator was scored where.
COMPARED = ("protocol", "extractor", "reference", "floor", "image", "weights", "seed", "dtype")
# Keys that change at most the last digits; a table mentions a difference.
REMARKED = ("versions", "device")


def comparison_key(provenance: dict[str, Any]) -> str:
    """Return a key that is equal for comparable scores: "series" in scores.jsonl."""
    return digest([provenance.get(key) for key in COMPARED])


def describe_difference(a: dict[str, Any], b: dict[str, Any], keys: Sequence[str] = COMPARED) -> str | None:
    """Return a description of the first of ``keys`` in which two provenances differ; None where they are equal."""
    for key in keys:
        if a.get(key) != b.get(key):
            return _first_difference(key, a.get(key), b.get(key))
    return None


def _first_difference(key: str, a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for inner in sorted({*a, *b}):
            if a.get(inner) != b.get(inner):
                return _first_difference(f"{key}.{inner}", a.get(inner), b.get(inner))
    return f"{key}: {a} and {b}"


def is_published_extractor(extractor: dict[str, Any]) -> bool:
    """Return whether an extractor's identity has a network and weights that published scores were computed with."""
    return extractor["extractor"] in PUBLISHED_EXTRACTORS and str(extractor.get("weights_sha256")).startswith(INCEPTION_CHECKSUM)


def distance_label(extractor: dict[str, Any], *, short: bool = False) -> str:
    """Return "FID" for a published extractor, else "Frechet distance" with the extractor's name."""
    return "FID" if is_published_extractor(extractor) else "Frechet distance" + _by(extractor, short)


def inception_score_label(extractor: dict[str, Any], *, short: bool = False) -> str:
    """Return "IS" for a published extractor, else "Inception score" with the extractor's name."""
    return "IS" if is_published_extractor(extractor) else "Inception score" + _by(extractor, short)


def _by(extractor: dict[str, Any], short: bool) -> str:
    other = ", other weights" if extractor["extractor"] in PUBLISHED_EXTRACTORS else ""
    return "" if short else f" ({extractor['extractor']}{other})"
