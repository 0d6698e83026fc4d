"""Scores as text for the terminal."""

from collections.abc import Callable
from typing import Any

from eval.comparison_keys import distance_label, inception_score_label
from eval.protocols import PROTOCOLS
from gan.utils.tables import format_mean_std

PRECISION, DENSITY = ("precision", "recall"), ("density", "coverage")  # names of scores that are shown together


def sizes(runs: int, samples: int, reference: int) -> str:
    """Return the numbers of images that were scored and compared with as text."""
    return f"{runs} x {samples:,} against {reference:,}"


def sizes_beyond_floor(record: dict[str, Any]) -> str | None:
    """Return the sizes of a score whose floor is of fewer images, which score less well; None where both are alike."""
    floor, made_with = record["floor"], record["provenance"]
    protocol, reference = made_with.get("protocol", {}), made_with["reference"].get("count")
    if floor is None or reference is None or "samples" not in protocol:
        return None
    if (floor["samples"], floor["reference"]) == (protocol["samples"], reference):
        return None
    return sizes(protocol["runs"], protocol["samples"], reference)


def format_record(run: str, record: dict[str, Any]) -> str:
    """Return a record of scores.jsonl as lines, with the score of real data beside each metric."""
    extractor, found, floor = record["provenance"]["extractor"], record["scores"], record["floor"]
    protocol = PROTOCOLS[record["protocol"]]
    distance, pooled = distance_label(extractor), found["pooled"]
    more = sizes_beyond_floor(record)
    label = "real" if more is None else "real, fewer images"
    lines = [f"{run} at step {record['step']}, protocol {protocol.name}: {protocol.purpose}"]

    def add(name: str, value: str, real: str | None = None) -> None:
        lines.append(f"  {name:<41} {value:<22}{'' if real is None else f'{label}: {real}'}".rstrip())

    def of_real(entry: str, write: Callable[[Any], str]) -> str | None:
        return write(floor[entry]) if floor and floor[entry] else None

    add(distance, format_mean_std(found["fid"]), of_real("fid", format_mean_std))
    if found["inception_score"]:
        score = format_mean_std(found["inception_score"])
        add(inception_score_label(extractor), score, of_real("inception_score", format_mean_std))
    if protocol.runs > 1:
        add(f"{distance}, all {protocol.total:,} images", f"{pooled['fid']:.2f}")
    if pooled["fid_infinity"] is not None:
        add("extrapolated to infinitely many", f"{pooled['fid_infinity']:.2f}")
    if found["kid"]:
        add("KID x 1000", _format_kid(found["kid"]), of_real("kid", _format_kid))
    for name, pair in (("precision / recall", PRECISION), ("density / coverage", DENSITY)):
        if pooled.get(pair[0]) is not None:  # scores of older versions lack density
            real = floor["pooled"] if floor else {}
            add(name, _format_pair(pooled, *pair), _format_pair(real, *pair) if real.get(pair[0]) is not None else None)
    if copying := found.get("copying"):
        add("copying, Z_U (a diagnostic, not a proof)", f"{copying['z']:.1f}")
        lines.append("  (far below 0: nearer to the reference than the held-out images are)")
    if floor:
        own = sizes(floor["runs"], floor["samples"], floor["reference"])
        note = "" if more is None else f"; the score is of {more}, where real images would score better"
        lines.append(f"  (real: {floor['source']}, {own}{note})")
    return "\n".join(lines)


def _format_kid(entry: dict[str, Any], digits: int = 2) -> str:
    """Return KID times 1000, as papers print it."""
    return format_mean_std(entry, digits, scale=1000)


def _format_pair(entry: dict[str, Any], first: str, second: str, digits: int = 3) -> str:
    return f"{entry[first]:.{digits}f} / {entry[second]:.{digits}f}"


def format_comparison(found: dict[str, Any]) -> str:
    """Return the comparison of two image sets as lines."""
    counts = " against ".join("an unknown number" if count is None else f"{count:,}" for count in found["counts"])
    extractor = found["provenance"]["extractor"]
    lines = [f"{counts} images, {extractor['extractor']}", f"  {distance_label(extractor):<41} {found['fid']:.4f}"]
    if score := found["inception_score"]:
        lines.append(f"  {inception_score_label(extractor):<41} {format_mean_std(score, 4)} ({score['splits']} splits)")
    if kid := found["kid"]:
        lines.append(f"  {'KID x 1000':<42}{_format_kid(kid, 4)} ({kid['subsets']} subsets of {kid['size']})")
    if found["precision"] is not None:
        lines.append(f"  {'precision / recall':<42}{_format_pair(found, *PRECISION, 4)}")
    if found["density"] is not None:
        lines.append(f"  {'density / coverage':<42}{_format_pair(found, *DENSITY, 4)}")
    return "\n".join(lines)
