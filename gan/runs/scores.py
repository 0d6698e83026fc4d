"""A run's scores.jsonl: one record a line, written by training or by a command; and which score is the best."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.locks import locked
from gan.utils.safe_reading import is_number, is_whole, parse_json, read_records, refuse_links

FILE = "scores.jsonl"
Record = dict[str, Any]
_ENTRIES = ("fid", "inception_score", "kid")
_PRECISION = ("precision", "recall")  # null in both or in neither
_POOLED = ("fid_infinity", *_PRECISION)  # numbers that may be null
_NEW = ("density", "coverage")  # null in both or in neither; old scores lack them


@dataclass(frozen=True)
class Score:
    """The result of scoring a generator while it trains."""

    record: Record  # for scores.jsonl: with "step", "source" and "series", which is equal for comparable scores
    curves: dict[str, float]  # for metrics.jsonl and the loggers, by name
    distance: float  # between generated and real images: the lower, the better


def read(folder: Path) -> list[Record]:
    """Read the scores of the run in ``folder``, oldest first. An incomplete last line is ignored.

    Raises UserError for a line that is not a score.
    """
    path = folder / FILE
    try:
        records = read_records(path)
        for number, record in enumerate(records, 1):
            if not _is_score(record):
                raise ValueError(f"line {number}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{path}: {error} is not a score. Restore the file from a copy, or remove the line.") from None
    return records


def _is_score(record: Record) -> bool:
    """Return whether ``record`` has every entry that is read from it."""
    made_by = record.get("provenance")
    return (
        all(_is_name(record.get(key)) for key in ("protocol", "source", "series"))
        and isinstance(made_by, dict)
        and all(isinstance(made_by.get(key), dict) for key in ("extractor", "reference", "generated"))
        and _is_name(made_by["extractor"].get("extractor"))
        and _is_name(made_by.get("weights"))
        and is_whole(made_by.get("seed"))
        and (made_by["reference"].get("count") is None or is_whole(made_by["reference"]["count"]))
        and _is_protocol(made_by.get("protocol", {}))
        and is_measurement(record.get("scores"))
        and "floor" in record
        and is_floor(record["floor"])
    )


def _is_name(found: Any) -> bool:
    """Return whether ``found`` is a text that may be printed as it is."""
    return isinstance(found, str) and found.isprintable()


def _is_protocol(found: Any) -> bool:
    """Return whether ``found`` says how many images were scored, or says nothing of it, as old scores."""
    return isinstance(found, dict) and ("samples" not in found or all(is_whole(found.get(key)) for key in ("runs", "samples")))


def _are_numbers(found: Any) -> bool:
    return isinstance(found, list) and all(map(is_number, found))


def is_measurement(found: Any) -> bool:
    """Return whether ``found`` has the numbers that a protocol measures."""
    if not isinstance(found, dict) or not isinstance(found.get("pooled"), dict):
        return False
    pooled, entries = found["pooled"], [found.get(name) for name in _ENTRIES]
    return (
        all(name in found for name in _ENTRIES)
        and all(name in pooled for name in _POOLED)
        and all(entry is None or (isinstance(entry, dict) and is_number(entry.get("mean"))) for entry in entries)
        and all(entry.get("std") is None or is_number(entry["std"]) for entry in entries if entry is not None)
        and all(_are_numbers(entry.get("values", [])) for entry in entries if entry is not None)
        and found["fid"] is not None
        and is_number(pooled.get("fid"))
        and all(pooled.get(name) is None or is_number(pooled[name]) for name in _POOLED + _NEW)
        and all((pooled.get(a) is None) == (pooled.get(b) is None) for a, b in (_PRECISION, _NEW))
        and (found.get("copying") is None or (isinstance(found["copying"], dict) and is_number(found["copying"].get("z"))))
    )


def is_floor(found: Any) -> bool:
    """Return whether ``found`` is None or a floor: the scores of real images."""
    return found is None or (
        is_measurement(found)
        and isinstance(found.get("source"), str)
        and all(is_whole(found.get(key)) for key in ("runs", "samples", "reference"))
        and "images" in found
    )


def require_writable(folder: Path) -> None:
    """Make ``folder`` where it is missing. Raise OSError where this user may not add scores to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        pass


def append(folder: Path, record: Record) -> None:
    """Append one record and sync it to the disk."""
    line = json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"
    with _locked(folder), (folder / FILE).open("a+b") as file:
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b"\n"):
            end = content.rfind(b"\n") + 1
            if _is_json(content[end:]):
                file.write(b"\n")  # an editor left it out
            else:
                file.truncate(end)  # a kill cut the line off
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def forget_training_after(folder: Path, step: int) -> None:
    """Remove the scores that training made after ``step``, since it will make them again. Those of a command stay."""
    if not (folder / FILE).exists():
        return
    with _locked(folder):
        kept = [r for r in read(folder) if r["source"] != "training" or r["step"] <= step]
        content = b"".join(json.dumps(r, sort_keys=True).encode() + b"\n" for r in kept)
        if content != (folder / FILE).read_bytes():
            write_atomically(folder / FILE, content)


def best_distance(folder: Path, series: str) -> float | None:
    """Return the lowest distance among the scores of ``series`` that training made; None where there is none."""
    own = [r for r in read(folder) if r["source"] == "training" and r["series"] == series]
    return min((distance_of(r) for r in own), default=None)


def distance_of(record: Record) -> float:
    """Return the distance over all samples, by which the best generator is chosen."""
    return float(record["scores"]["pooled"]["fid"])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process write at a time: a command may score a run in training."""
    refuse_links(folder)
    with locked(folder / ".scores.lock"):
        yield
