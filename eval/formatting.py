"""Scores in words."""

from typing import Any

from eval import comparison_keys
from eval.protocols import PROTOCOLS


def figure(entry: dict[str, Any] | None, digits: int = 2) -> str:
    """A mean and its deviation, where there is one."""
    if entry is None:
        return "-"
    deviation = "" if entry.get("std") is None else f" ± {entry['std']:.{digits}f}"
    return f"{entry['mean']:.{digits}f}{deviation}"


def describe(run: str, record: dict[str, Any]) -> str:
    """A score for people, with what must be known to read it."""
    extractor, found, floor = record["provenance"]["extractor"], record["scores"], record["floor"]
    protocol = PROTOCOLS[record["protocol"]]
    distance, score = comparison_keys.name_of_distance(extractor), comparison_keys.name_of_score(extractor)
    pooled = found["pooled"]
    lines = [f"{run} at step {record['step']}, protocol {protocol.name}: {protocol.purpose}"]

    def add(name: str, value: str, real: str | None = None) -> None:
        lines.append(f"  {name:<42}{value:<22}{'' if real is None else f'real: {real}'}".rstrip())

    add(distance, figure(found["fid"]), figure(floor["fid"]) if floor else None)
    if found["inception_score"]:
        add(score, figure(found["inception_score"]), figure(floor["inception_score"]) if floor else None)
    if protocol.runs > 1:
        add(f"{distance}, all {protocol.total:,} images", f"{pooled['fid']:.2f}")
    if pooled["fid_infinity"] is not None:
        add("extrapolated to infinitely many", f"{pooled['fid_infinity']:.2f}")
    if found["kid"]:
        add("KID x 1000", figure(_thousandfold(found["kid"])), figure(_thousandfold(floor["kid"])) if floor else None)
    if pooled["precision"] is not None:
        real = f"{floor['pooled']['precision']:.3f} / {floor['pooled']['recall']:.3f}" if floor else None
        add("precision / recall", f"{pooled['precision']:.3f} / {pooled['recall']:.3f}", real)
    if floor:
        lines.append(f"  (real: {floor['source']}, {floor['runs']} x {floor['samples']:,} against {floor['reference']:,})")
    return "\n".join(lines)


def _thousandfold(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] * 1000 if entry[key] is not None else None for key in ("mean", "std")}


def describe_comparison(found: dict[str, Any]) -> str:
    """A comparison of two sets for people."""
    counts = " against ".join("an unknown number" if count is None else f"{count:,}" for count in found["counts"])
    extractor = found["provenance"]["extractor"]
    lines = [
        f"{counts} images, {extractor['extractor']}",
        f"  {comparison_keys.name_of_distance(extractor):<42}{found['fid']:.4f}",
    ]
    if found["inception_score"]:
        lines.append(
            f"  {comparison_keys.name_of_score(extractor):<42}{figure(found['inception_score'], 4)}"
            f" ({found['inception_score']['splits']} splits)"
        )
    if found["kid"]:
        kid = found["kid"]
        lines.append(f"  {'KID x 1000':<42}{figure(_thousandfold(kid), 4)} ({kid['subsets']} subsets of {kid['size']})")
    if found["precision"] is not None:
        lines.append(f"  {'precision / recall':<42}{found['precision']:.4f} / {found['recall']:.4f}")
    return "\n".join(lines)
