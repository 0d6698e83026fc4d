"""Commands and tiny settings that the tests of the study share."""

import json
from pathlib import Path
from typing import Any

from gan.utils import cli
from study.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "configs" / "study" / "digits_cnn3.yaml"
TINY = [
    "training.epochs=0.4", "training.precision=fp32", "probes.every=3", "checkpoint.every=4", "tracking.every=1",
    "data.train_images=400", "data.test_images=60", "training.batch_size=20",
]  # fmt: skip


def study(*words: str) -> int:
    """Return the exit code of ``python -m study WORDS``, run in this process."""
    return cli.run(lambda: main(words))


def train(folder: Path, *settings: str, name: str = "run") -> Path:
    """Train a tiny classifier. Return its run folder."""
    assert study("train", "--config", str(DIGITS), *TINY, f"run.dir={folder}", f"run.name={name}", *settings) == 0
    return folder / name


def contents(run: Path) -> dict[str, Any]:
    """Return the contents of a run's folder without times."""
    timings = {"images_per_second", "seconds"}
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name not in ("environment.json", ".lock"):
            found[str(path.relative_to(run))] = path.read_bytes()
    lines = found.pop("metrics.jsonl").splitlines()
    found["metrics"] = [{k: v for k, v in json.loads(line).items() if k not in timings} for line in lines]
    return found
