"""The grid of a sweep: every combination of configuration, values of settings and seed, as runs with folders of their own."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from gan.utils.errors import UserError
from gan.utils.settings import C

Values = dict[str, str]  # by dotted key: one combination, as text of the command line
NAMED_BY_SWEEP = ("seed", "run.name")
LONGEST_NAME = 200  # bytes; file systems allow 255, and logs and temporary files beside a run have longer names


@dataclass(frozen=True)
class PlannedRun(Generic[C]):
    """One run of a sweep."""

    config: C
    words: list[str]  # arguments of the training command


def count_runs(number: int) -> str:
    """Return "1 run" or "N runs"."""
    return f"{number} run{'' if number == 1 else 's'}"


def parse_values(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each key of ``words``, each KEY=V1,V2. A comma inside brackets does not separate values.

    Raises UserError for a word without values, a key or a value that is given twice, and a key that the sweep sets itself.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = _split(text)
        if not key or not equals or not all(values):
            raise UserError(f"--set {word}: expected KEY=V1,V2, such as optimizer.d_lr=1e-4,2e-4.")
        if key in NAMED_BY_SWEEP:
            raise UserError(f"--set {word}: a sweep sets {' and '.join(NAMED_BY_SWEEP)} itself. Use --seeds or run.dir.")
        if key in found:
            raise UserError(f"--set {word}: {key} is given twice. Give all its values at once, separated by commas.")
        if len(set(values)) < len(values):
            raise UserError(f"--set {word}: a value is given twice. Give each value once.")
        found[key] = values
    return found


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def name_of(path: Path, values: Values, seed: int | None, varied: Sequence[str]) -> str:
    """Return a run's name: its configuration, the value of each ``varied`` key, its seed where the sweep has seeds.

    A key is shortened to its last part, or to as many parts as tell it from the other keys; loss.name to loss. The end of a
    name that is too long is replaced by a checksum.
    """
    parts = [f"{_short(key, varied).removesuffix('.name')}-{values[key]}" for key in varied]
    name = "_".join([path.stem, *parts, *([] if seed is None else [f"seed{seed}"])])
    name = re.sub(r"[^\w.+-]+", "-", name)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _short(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    for count in range(2 if parts[-1] == "name" else 1, len(parts)):
        suffix = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{suffix}") for other in keys) == 1:
            return suffix
    return key


def plan(
    paths: Sequence[Path],
    values: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    load: Callable[[Path, Sequence[str]], C],
    name: Callable[[Path, Values, int | None], str],
    fixed: Sequence[str] = (),
) -> list[PlannedRun[C]]:
    """Return every combination of configuration file, ``values`` and seed (none: the files' own), with the ``fixed`` key=value.

    Seeds vary slowest, so that a stopped sweep has complete results of fewer seeds.

    Raises UserError as ``load``, and where two runs would share a folder.
    """
    every_seed: Sequence[int | None] = seeds or [None]
    runs = []
    for seed, path, chosen in itertools.product(every_seed, paths, itertools.product(*values.values())):
        own = dict(zip(values, chosen, strict=True))
        settings = [*fixed, *(f"{key}={value}" for key, value in own.items())]
        settings += [f"seed={seed}"] if seed is not None else []
        settings.append(f"run.name={name(path, own, seed)}")
        runs.append(PlannedRun(load(path, settings), ["--config", str(path), *settings]))
    for folder, count in Counter(run.config.folder for run in runs).items():
        if count > 1:
            raise UserError(f"{folder}: {count} runs of the sweep would write to it. Give each value and configuration once.")
    return runs
