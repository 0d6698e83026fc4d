"""Weights that the tests of extractors share, and scored runs that the tests of reports share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from eval import measurement
from eval.features import Features
from eval.measurement import Reference
from gan.config import load_config
from gan.runs import scores
from gan.utils.settings import to_yaml
from tests.small import PAPER, QUICK

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception that tell images apart. Not to be changed."""
    return peers.random_inception_weights(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture
def make(finished_run: Path, tmp_path: Path) -> Make:
    """A scored run: real records of random features, ``shift`` away from the reference's."""

    def run(
        name: str, *settings: str, shift: float = 1.0, extractor: str = "efficientnet-lite0", seed: int = 0, weights: str = "0"
    ) -> Path:
        folder = tmp_path / "runs" / name
        shutil.copytree(finished_run, folder)
        changed = load_config(folder / "config.yaml", [*settings, f"seed={seed}", f"run.name={name}"])
        (folder / "config.yaml").write_text(to_yaml(changed))
        draw = np.random.RandomState(seed)
        identity = {"extractor": extractor, "weights_sha256": weights}
        reference = Reference(_features(np.random.RandomState(99), 0, identity))
        for step, distance in ((0, shift + 3), (4, shift)):
            for protocol in (QUICK, PAPER):
                own = _features(draw, distance, identity)
                provenance = {"step": step, "image": [1, 32, 32], "weights": "ema", "seed": 0}
                provenance["reference_name"] = f"{changed.data.name}:{changed.data.split}"
                floor = measurement.floor(reference, protocol)
                record = measurement.make_record(own, reference, protocol, floor, provenance)
                scores.append(folder, {"step": step, "source": "command", "series": protocol.name, **record})
        return folder

    return run


def _features(draw: np.random.RandomState, shift: float, extractor: dict[str, str]) -> Features:
    logits = (4 * draw.randn(400, 5)).astype(np.float32)
    return Features((draw.randn(400, 6) + shift).astype(np.float32), logits, {"content": "x", "weights": "ema"}, extractor)
