"""make table2: from nothing to the report, and on after a stop."""

import csv
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_make_table2_trains_scores_and_reports_and_skips_what_is_done(tmp_path: Path) -> None:
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("make setup has not been run here")
    images = tmp_path / "images"
    images.mkdir()
    draw = np.random.default_rng(0)
    for index in range(40):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(images / f"{index}.png")
    settings = " ".join([*TINY, "data.name=folder", f"data.path={images}", "samples.every=2", "training.d_steps=1"])

    def make() -> str:
        words = ["STEPS=2", "EXTRACTOR=efficientnet-lite0", "PROTOCOLS=quick", f"RUNS={tmp_path / 'runs'}"]
        words += [f"OUT={tmp_path / 'table'}", "FLOOR=", f"SETTINGS={settings}", "TABLE2=cifar10_msngan"]
        done = subprocess.run(["make", "table2", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    def rows() -> dict[str, dict[str, str]]:
        with (tmp_path / "table" / "table2.csv").open() as file:
            return {line["model"]: line for line in csv.DictReader(file)}

    make()
    first = rows()
    assert set(first) == {"Real data", "MSNGAN"}
    assert all(float(line["fid"]) > 0 for line in first.values())
    assert make().count("is complete at step 2") == 1
    assert rows() == first
