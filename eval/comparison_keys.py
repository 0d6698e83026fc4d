"""Which scores may stand in one table, and under what name."""

from collections.abc import Sequence
from typing import Any

from eval.extractors import INCEPTION_CHECKSUM, OF_THE_LITERATURE
from eval.features import digest

# What must be equal for two scores to stand in one table. The rest tells which generator was scored, and on what machine.
COMPARED = ("protocol", "extractor", "reference", "floor", "image", "weights", "seed", "dtype")
# What changes no more than the last digits: worth a remark.
REMARKED = ("versions", "device")


def series(provenance: dict[str, Any]) -> str:
    """Equal where two scores may stand in one table."""
    return digest([provenance.get(key) for key in COMPARED])


def difference(a: dict[str, Any], b: dict[str, Any], keys: Sequence[str] = COMPARED) -> str | None:
    """The first of ``keys`` in which two provenances differ, and how; by default what keeps them from one table."""
    for key in keys:
        if a.get(key) != b.get(key):
            return _difference(key, a.get(key), b.get(key))
    return None


def _difference(key: str, a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for inner in sorted({*a, *b}):
            if a.get(inner) != b.get(inner):
                return _difference(f"{key}.{inner}", a.get(inner), b.get(inner))
    return f"{key}: {a} and {b}"


def of_the_literature(extractor: dict[str, Any]) -> bool:
    """Whether an extractor's identity is that of a network and weights that published scores were made with."""
    return extractor["extractor"] in OF_THE_LITERATURE and str(extractor["weights_sha256"]).startswith(INCEPTION_CHECKSUM)


def name_of_distance(extractor: dict[str, Any], *, short: bool = False) -> str:
    """FID where the extractor is the literature's, else the name of what it is."""
    return "FID" if of_the_literature(extractor) else "Frechet distance" + _by(extractor, short)


def name_of_score(extractor: dict[str, Any], *, short: bool = False) -> str:
    """IS where the extractor is the literature's."""
    return "IS" if of_the_literature(extractor) else "Inception score" + _by(extractor, short)


def _by(extractor: dict[str, Any], short: bool) -> str:
    other = ", other weights" if extractor["extractor"] in OF_THE_LITERATURE else ""
    return "" if short else f" ({extractor['extractor']}{other})"
