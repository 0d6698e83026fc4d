"""Runs of an earlier commit (tests/runs/old_runs.zip) still load, sample, score, resume and are reported."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import eval.__main__ as evaluation
import gan.__main__ as sampling
import study.__main__ as study
from gan import load_generator
from gan.utils import cli
from tests.conftest import command
from tests.small import scale_down

TIMINGS = ("seconds", "images_per_second")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The runs ``gan`` (MSN, 12 steps, checkpoints at 6 and 12, scored) and ``cnn3`` (10 steps, checkpoint at 4)."""
    with zipfile.ZipFile(Path(__file__).parent / "old_runs.zip") as archive:
        for name in archive.namelist():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(archive.read(name))
    return tmp_path / "old"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_metrics(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare lines without timings; the last bits depend on the processor."""
    for mine, theirs in zip(found, expected, strict=True):
        mine, theirs = ({k: v for k, v in line.items() if k not in TIMINGS} for line in (mine, theirs))
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-3)


def resume(run: Path, *settings: str) -> int:
    return command(["--config", str(run / "config.yaml"), f"run.dir={run.parent}", *settings])


def test_old_generator_samples_what_its_run_showed(old: Path, tmp_path: Path) -> None:
    run, out = old / "gan", tmp_path / "grid.png"
    assert cli.run(lambda: sampling.main(["sample", str(run), "--out", str(out), "--count", "4", "--seed", "0"])) == 0
    shown, sampled = (np.asarray(Image.open(path)).astype(int) for path in (run / "samples" / "step-00000012.png", out))
    assert shown.std() > 10, "the picture would show a generator that does not fit"
    assert np.abs(shown - sampled).max() <= 1
    for folder, step in ((run, 12), (run / "checkpoints" / "step-00000006", 6), (run / "best", 12)):
        generator = load_generator(folder)
        assert (generator.step, generator.weights) == (step, "ema")


def test_old_run_is_scored_and_its_scores_are_reported(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    monkeypatch.setenv("MSNGAN_CACHE", str(tmp_path / "cache"))
    before = lines(old / "gan" / "scores.jsonl")
    assert resume(old / "gan") == 0  # it is complete, so only its summary is printed
    assert f"{before[-1]['scores']['fid']['mean']:.1f} at step 12" in capsys.readouterr().out
    score = ["score", str(old / "gan"), "--protocol", "quick", "--extractor", "efficientnet-lite0"]
    assert cli.run(lambda: evaluation.main(score)) == 0
    after = lines(old / "gan" / "scores.jsonl")
    assert after[:-1] == before
    assert after[-1]["provenance"]["reference"] == before[-1]["provenance"]["reference"], "the images are the same"


@pytest.mark.slow
def test_old_gan_resumes_with_the_same_steps(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = old / "gan"
    newest = run / "checkpoints" / "step-00000012"
    newest.rename(old / "expected")
    expected = lines(run / "metrics.jsonl")
    assert resume(run, "evaluation.every=0") == 0
    assert "from step 6 to 12" in capsys.readouterr().err
    found = lines(run / "metrics.jsonl")
    # The spread of samples is relative to other real images than before: from the whole set, not the first ones.
    (now,), (then,) = (
        [line.pop("samples_spread") for line in some if "samples_spread" in line and line["step"] == 12]
        for some in (found, expected)
    )
    assert now == pytest.approx(then, rel=0.1)
    assert_same_metrics(found, [line for line in expected if not (line["step"] == 12 and "quick/efficientnet-lite0/fid" in line)])
    for name in ("generator", "discriminator", "ema"):
        mine, theirs = (load_file(folder / f"{name}.safetensors") for folder in (newest, old / "expected"))
        assert mine.keys() == theirs.keys()
        for key in theirs:
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-2, atol=1e-3, err_msg=f"{name}: {key}")


@pytest.mark.slow
def test_old_gan_trains_on_and_keeps_its_scores(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale_down(monkeypatch)
    before = lines(old / "gan" / "scores.jsonl")
    assert resume(old / "gan", "training.steps=15", "evaluation.every=15") == 0
    assert lines(old / "gan" / "metrics.jsonl")[-1]["step"] == 15
    assert lines(old / "gan" / "scores.jsonl")[: len(before)] == before
    assert load_generator(old / "gan").step == 15


@pytest.mark.slow
def test_old_classifier_resumes_with_the_same_steps(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = old / "cnn3"
    expected = {name: lines(run / name) for name in ("metrics.jsonl", "probes.jsonl")}
    tables = ["tables", str(run), "--out", str(tmp_path / "tables")]
    assert cli.run(lambda: study.main(tables)) == 0
    assert cli.run(lambda: study.main(["train", "--config", str(run / "config.yaml"), f"run.dir={old}"])) == 0
    assert "from step 4 to 10" in capsys.readouterr().err
    assert_same_metrics(lines(run / "metrics.jsonl"), expected["metrics.jsonl"])
    found = lines(run / "probes.jsonl")
    added = {"sigma", "sigma_estimate", "stable_rank"}  # since then
    assert [(line["step"], line["layer"], [key for key in line if key not in added]) for line in found] == [
        (line["step"], line["layer"], [*line]) for line in expected["probes.jsonl"]
    ]
