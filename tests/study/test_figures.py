"""Figures show what was recorded, each norm on a scale on which it can be read."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from study.figures import _accuracy, _of_one_rate, _panels
from study.panels import column
from study.probe_figures import SHOWN_BINS, central_range, coarser, histogram_layers, probes_csv
from study.results import comparable_runs, read_run
from tests.study.common import study, train


@pytest.mark.slow
def test_figures_are_drawn_from_what_was_recorded(finished: Path, tmp_path: Path) -> None:
    train(tmp_path / "runs", "model.norm=batch", name="bn")
    moved = tmp_path / "moved"
    moved.mkdir()
    for run in (finished, tmp_path / "runs" / "bn"):  # figures need the records alone, no checkpoints
        (moved / run.name).mkdir()
        for file in ("config.yaml", "metrics.jsonl", "probes.jsonl"):
            (moved / run.name / file).write_bytes((run / file).read_bytes())
    assert study("figures", str(moved), "--out", str(tmp_path / "out")) == 0
    names = {f"figure{n}_cnn3_digits" for n in (1, 3, 4, 5, 6)} | {"figure2"}
    files = {f"{n}.{e}" for n in names for e in ("pdf", "png")} | {"probes_cnn3_digits.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / "out" / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # something was drawn
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert study("figures", str(moved), "--out", str(tmp_path / "out")) == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_runs_as_written_and_as_released_are_drawn_together(finished: Path, tmp_path: Path) -> None:
    released = train(tmp_path, "model.variant=released", "model.norm=spectral_projected", name="released")
    for words, names in (([], {"cnn3_digits", "cnn3_released_digits"}), (["--together"], {"cnn3_digits"})):
        out = tmp_path / ("together" if words else "apart")
        assert study("figures", str(finished), str(released), "--out", str(out), *words) == 0
        assert {path.stem.removeprefix("probes_") for path in out.glob("*.csv")} == names
    rows = list(csv.DictReader((tmp_path / "together" / "probes_cnn3_digits.csv").open()))
    assert {row["variant"] for row in rows} == {"full", "released"}
    assert {row["norm"] for row in rows} == {"mean_spectral", "spectral_projected"}
    assert column(read_run(released), name_variant=True).title == "as released:\nSN, projected"


def test_a_seed_without_a_test_yet_does_not_hide_the_others(finished: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(finished, tmp_path / "begun"))
    (begun / "config.yaml").write_text((begun / "config.yaml").read_text().replace("seed: 0\n", "seed: 1\n", 1))
    (begun / "metrics.jsonl").write_text("")
    (group,) = comparable_runs([read_run(finished), read_run(begun)])
    (line,) = _accuracy([(group, read_run(finished).config.optimizer.lr)]).axes[0].lines
    assert line.get_label() == "MSN (1 seed)"
    assert len(line.get_xdata()) == len(read_run(finished).tests)


def test_the_csv_of_probes_holds_the_recorded_numbers(finished: Path) -> None:
    run = read_run(finished)
    rows = list(csv.DictReader(probes_csv([column(run, name_variant=False)]).splitlines()))
    assert len(rows) == len(run.probes)
    for row, record in zip(rows, run.probes, strict=True):
        assert (int(row["layer"]), int(row["step"])) == (record["layer"], record["step"])
        assert float(row["weight_std"]) == pytest.approx(record["weight_std"], rel=1e-3)
        assert float(row["gradient_below_1e-06"]) == pytest.approx(record["gradient_below"]["1e-06"], rel=1e-3)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([0, 0, 0, 100, 0, 0, 0], 1.0),  # all entries in the middle bin, from -1 to 1
        ([0, 0, 49, 2, 49, 0, 0], 3.0),
        ([2, 0, 0, 96, 0, 0, 2], 7.0),  # 4% in the outermost bins: 99% of the entries need all of them
        ([0, 1, 0, 499, 0, 0, 0], 1.0),
    ],
)
def test_a_histograms_range_holds_99_percent_of_the_entries(counts: list[int], expected: float) -> None:
    record: dict[str, Any] = {"gradient_histogram": counts, "gradient_max": 7.0}
    assert central_range(record) == pytest.approx(expected)


def test_a_histogram_of_narrow_gradients_is_not_drawn_on_the_range_of_wide_ones() -> None:
    wide, narrow = np.random.default_rng(0).normal(size=10_000), np.random.default_rng(1).normal(scale=1e-3, size=10_000)
    ranges = []
    for values in (wide, narrow):
        edge = float(np.abs(values).max())
        counts = np.histogram(values, bins=801, range=(-edge, edge))[0].tolist()
        ranges.append(central_range({"gradient_histogram": counts, "gradient_max": edge}))
    assert ranges == [pytest.approx(2.576, rel=0.05), pytest.approx(2.576e-3, rel=0.05)]  # 99% of a normal distribution


@pytest.mark.parametrize(("bins", "widest", "expected"), [(101, 1.0, 101), (801, 1.0, 53), (801, 0.01, 801)])
def test_narrow_bins_are_joined_symmetrically_about_zero(bins: int, widest: float, expected: int) -> None:
    counts, edges = np.ones(bins), np.linspace(-1, 1, bins + 1)
    sums, joined = coarser(counts, edges, widest)
    assert len(sums) == len(joined) - 1 == expected
    assert expected > SHOWN_BINS
    assert joined == pytest.approx(-joined[::-1])
    assert sums / np.diff(joined) == pytest.approx(bins / 2)  # the density of 1 count a bin over a range of 2


def test_histograms_are_of_the_papers_layers_and_of_those_that_runs_of_before_recorded() -> None:
    assert histogram_layers([7, 14, 45, 57, 68, 76]) == [45, 76]
    assert histogram_layers([6, 13, 44, 56, 67, 75]) == [44, 75]
    assert histogram_layers([1, 2, 3, 4]) == [1, 4]


def test_columns_of_one_variant_name_the_settings_that_tell_them_apart(finished: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(re.sub("batch_size: [0-9]+", "batch_size: 10", text, count=1))
    panels = _panels(_of_one_rate([read_run(finished), read_run(other)], None), together=True)
    (columns,) = panels.values()
    assert sorted(shown.apart for shown in columns) == ["training.batch_size=10", "training.batch_size=20"]
    assert all(shown.apart in shown.title for shown in columns)
    assert "full training.batch_size=10" in probes_csv(columns)
