"""The protocol ``watch``: as ``quick``, against few real images, so that a training starts soon."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval import scoring
from eval.image_sets import ChosenImages
from eval.measurement import split_images
from eval.protocols import PROTOCOLS
from gan.config import GanConfig, load_config
from gan.runs import scores
from tests.conftest import command
from tests.eval.test_scoring import evaluate
from tests.small import WATCH, scale_down

WORDS = ("--extractor", "efficientnet-lite0", "--protocol")


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scale_down(monkeypatch)
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))


def test_released_protocols_compare_by_what_they_compared_by_before() -> None:
    assert PROTOCOLS["quick"].identity() == {
        "name": "quick", "purpose": "for watching a training: 1,000 images once", "runs": 1, "samples": 1000, "splits": 1,
        "reference": None, "kid_subsets": 20, "kid_size": 500, "neighbours": 3, "neighbourhood": 10_000,
        "infinity_start": 5000, "infinity_points": 10, "seed": 2020,
    }  # fmt: skip
    watch, quick = PROTOCOLS["watch"], PROTOCOLS["quick"]
    assert watch.identity() == {**quick.identity(), "name": "watch", "purpose": watch.purpose, "at_most": 10_000}


def test_the_images_are_drawn_by_the_seed_and_are_all_where_there_are_few() -> None:
    chosen, others = split_images(50_000, PROTOCOLS["watch"])
    assert len(chosen) == 10_000
    assert sorted([*chosen, *others]) == list(range(50_000))
    assert (np.diff(chosen) > 0).all()
    assert chosen.mean() == pytest.approx(25_000, rel=0.02), "from everywhere: many sets are sorted by class"
    assert (chosen == split_images(50_000, PROTOCOLS["sngan"])[0]).all()
    assert (split_images(1797, PROTOCOLS["watch"])[0] == np.arange(1797)).all()


@pytest.mark.usefixtures("_small")
def test_scores_are_the_same_whether_the_other_images_were_extracted_or_not(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reads: list[int] = []
    read = ChosenImages.read
    monkeypatch.setattr(ChosenImages, "read", lambda self, start, count: reads.append(count) or read(self, start, count))
    monkeypatch.setattr(scoring, "TOLD_SECONDS", 0.0)
    alone, together = (Path(shutil.copytree(finished_run, tmp_path / name)) for name in ("alone", "together"))
    with caplog.at_level(logging.INFO):
        assert evaluate("score", alone, *WORDS, "watch") == 0
    assert sum(reads) == WATCH.at_most == 100
    assert "100 real images through efficientnet-lite0: 0 s. Their features are kept for the next time." in caplog.messages
    assert evaluate("score", together, *WORDS, "watch", "quick") == 0
    assert sum(reads) == 100, "the full reference serves both"
    (one,), (other, quick) = scores.read(alone), scores.read(together)
    assert one["scores"] == other["scores"]
    assert {**one["floor"], "images": None} == {**other["floor"], "images": None}
    assert one["series"] == other["series"] != quick["series"]
    assert one["provenance"]["reference"] == other["provenance"]["reference"]
    assert one["provenance"]["reference"]["count"] == 100
    assert one["floor"]["source"] == "images taken out of the reference"
    assert quick["provenance"]["reference"]["count"] == 1797


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_a_new_run_is_watched_and_an_old_one_keeps_its_protocol(tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    scored = ("training.steps=1", "samples.every=0", "evaluation.every=1")
    assert GanConfig().resolve().evaluation.protocol == "watch"
    assert command(tiny(*scored, name="new")) == 0
    assert load_config(tmp_path / "runs" / "new" / "config.yaml").evaluation.protocol == "watch"
    old = tmp_path / "runs" / "old"
    assert command(tiny(*scored, "evaluation.protocol=quick", name="old")) == 0
    assert command(tiny(*scored, "training.steps=2", name="old")) == 0
    assert command(tiny(*scored, "training.steps=3", "evaluation.protocol=watch", name="old")) == 0
    assert [record["protocol"] for record in scores.read(old)] == ["quick", "quick", "quick", "watch"]
