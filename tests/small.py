"""A small extractor and image set: what tests use where the network does not matter, only what is done with its features.

And other settings for a run that was trained.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.extractors import EXTRACTORS, Extractor
from eval.protocols import PROTOCOLS, Protocol
from gan.runs.manifest import MANIFEST, SEAL, seal


def small_extractor(name: str = "small") -> Extractor:
    """Features are pixels of a thumbnail, logits fixed combinations of them."""

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)  # N 12
        return pooled, pooled @ torch.linspace(-9, 9, 48).view(12, 4).sin() * 20

    identity = {"extractor": name, "weights_sha256": "0", "resize": "none", "package": "none"}
    return Extractor(name, 12, 4, identity, torch.device("cpu"), forward)


class SmallImages:
    """``count`` random images; counts how many have been read, and can fail or be stopped at one."""

    def __init__(self, count: int, seed: int = 0, stop_at: int | None = None) -> None:
        self.pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        self.identity: dict[str, Any] = {"content": f"{seed}", "count": count, "image": [3, 8, 8]}
        self.stop_at, self.reads = stop_at, 0

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, start: int, count: int) -> Tensor:
        if self.stop_at is not None and start <= self.stop_at < start + count:
            raise KeyboardInterrupt
        self.reads += count
        return self.pixels[start : start + count]


QUICK = Protocol(name="quick", purpose="for tests", runs=1, samples=40, kid_subsets=3, kid_size=20)
WATCH = replace(QUICK, name="watch", at_most=100)
PAPER = Protocol(
    name="paper", purpose="for tests", runs=3, samples=40, kid_subsets=3, kid_size=20, infinity_start=60, infinity_points=3
)


def scale_down(patch: pytest.MonkeyPatch | None = None) -> None:
    """Scores take milliseconds from here on: the small extractor under a name that settings know, protocols of few images.

    For good in a worker process; until the end of a test with its monkeypatch.
    """
    changes: list[tuple[dict[str, Any], str, Any]] = [
        (EXTRACTORS, "efficientnet-lite0", lambda weights, device: small_extractor("efficientnet-lite0")),
        (PROTOCOLS, "quick", QUICK),
        (PROTOCOLS, "watch", WATCH),
        (PROTOCOLS, "paper", PAPER),
    ]
    for table, key, value in changes:
        if patch is None:
            table[key] = value
        else:
            patch.setitem(table, key, value)


def change_settings(run: Path, change: Callable[[str], str]) -> None:
    """Replace the text of each config.yaml of ``run``, its checkpoints' included, whose manifests then hold the new checksum."""
    for config in run.rglob("config.yaml"):
        text = change(config.read_text())
        config.write_text(text)
        manifest = config.with_name(MANIFEST)
        if manifest.exists():
            found = json.loads(manifest.read_bytes())
            found["files"]["config.yaml"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            manifest.write_text(json.dumps(found))
            config.with_name(SEAL).write_bytes(seal(manifest.read_bytes()))
