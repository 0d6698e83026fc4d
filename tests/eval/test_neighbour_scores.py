"""Density, coverage and copying in scores: new records have them, old ones without them still load, print and compare."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import __main__ as program
from eval.comparison_keys import comparison_key
from eval.features import Features
from eval.formatting import format_record
from eval.measurement import Reference, measure
from eval.table2_cells import comma_separated, details, overview
from eval.table2_data import collect
from gan.runs import scores
from gan.utils import cli
from tests.eval.test_scoring import SMALL, picture_folder, random_features
from tests.small import scale_down

NEW = ("density", "coverage", "density_neighbours")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scale_down(monkeypatch)
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))


def score(run: Path, *arguments: object) -> dict[str, Any]:
    words = ["score", run, "--protocol", "quick", "--extractor", "efficientnet-lite0", *arguments]
    assert cli.run(lambda: program.main([str(word) for word in words])) == 0
    return scores.read(run)[-1]


def without_new(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as an earlier version wrote it."""
    old = deepcopy(record)
    del old["scores"]["copying"]
    for pooled in (old["scores"]["pooled"], old["floor"]["pooled"]):
        for name in NEW:
            del pooled[name]
    return old


def test_a_generator_that_copies_is_told_apart_where_real_images_are_held_out() -> None:
    reference, held_out = random_features(400, 1), random_features(120, 2)
    noise = 0.05 * np.random.RandomState(0).randn(150, 6).astype(np.float32)
    copies = Features(reference.values[:150] + noise, reference.logits[:150], {"seed": 0}, reference.extractor)  # type: ignore[index]
    found = measure(copies, Reference(reference), SMALL, held_out)["copying"]
    assert found["z"] < -8
    assert found["counts"] == [150, 120, 400], "with all images that it was trained on, not those alone of the protocol"
    assert abs(measure(random_features(150, 3), Reference(reference), SMALL, held_out)["copying"]["z"]) < 3
    assert measure(copies, Reference(reference), SMALL)["copying"] is None


def test_scores_have_density_coverage_and_with_held_out_images_copying(run: Path, tmp_path: Path) -> None:
    plain = score(run)
    assert plain["scores"]["copying"] is None
    for pooled in (plain["scores"]["pooled"], plain["floor"]["pooled"]):
        assert pooled["density_neighbours"] == 5
        assert 0 <= pooled["coverage"] <= 1
    assert "copying" not in format_record("run", plain)
    held_out = score(run, "--floor", picture_folder(tmp_path / "held_out", 60, mode="L"))
    assert {key: held_out["scores"][key] for key in held_out["scores"] if key != "copying"} == {
        key: plain["scores"][key] for key in plain["scores"] if key != "copying"
    }
    text = format_record("run", held_out)
    assert f"copying, Z_U (a diagnostic, not a proof)  {held_out['scores']['copying']['z']:.1f}" in text
    assert "density / coverage" in text


def test_records_without_the_new_scores_load_print_and_compare(run: Path, tmp_path: Path) -> None:
    new = score(run)
    old = without_new(new)
    assert scores.is_measurement(old["scores"])
    assert scores.is_floor(old["floor"])
    assert comparison_key(old["provenance"]) == new["series"]
    shown = format_record("run", old)
    assert "precision / recall" in shown
    assert "density" not in shown
    other = shutil.copytree(run, tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("seed: 0", "seed: 1", 1))
    (other / scores.FILE).write_text(json.dumps(old) + "\n")
    table = collect([run, other], None)
    assert "2 trainings" in overview(table)[1][-1][-1]
    heads, rows = details(table, "quick")
    assert rows[-1][heads.index("density ↑")] == "-", "one of two trainings has it, which is no mean of both"
    assert "density,density_std,coverage,coverage_std" in comma_separated(table)
    old["scores"]["copying"] = {"z": "near"}
    assert not scores.is_measurement(old["scores"])
