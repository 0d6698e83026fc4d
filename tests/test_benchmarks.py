"""Benchmarks alternate their candidates, which do the same work and compute the same numbers."""

import math
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import norms, profiles, scaling, steps
from benchmarks.__main__ import MARKS, main
from benchmarks.alternating import ROOT, Candidate, Case, Timing, compete
from benchmarks.measurements import Row, Suite, speed_up, write_random_images
from benchmarks.short import short_table
from benchmarks.steps import PLAIN, VARIANTS
from gan.utils import cli

HERE = "tests.test_benchmarks"


def sleeper(seconds: float, log: str) -> Case:
    """Return a case that sleeps and logs it."""

    def case() -> float:
        with Path(log).open("a") as file:
            print(seconds, file=file)
        time.sleep(seconds)
        return seconds

    return case


def failing() -> Case:
    def case() -> None:
        raise RuntimeError("broken")

    return case


@pytest.mark.slow
def test_candidates_alternate_and_each_is_timed_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    candidates = {str(s): Candidate(f"{HERE}:sleeper", {"seconds": s, "log": str(log)}) for s in (0.01, 0.05)}
    timings = compete(candidates, rounds=3, units=2, warm_up=1)
    assert log.read_text().split() == ["0.01", "0.05"] + 3 * ["0.01", "0.01", "0.05", "0.05"]
    for seconds in (0.01, 0.05):
        timing = timings[str(seconds)]
        assert timing.value == seconds
        assert len(timing.seconds) == 3
        assert timing.median == pytest.approx(seconds, abs=0.02)
        assert 5 < timing.peak_mb < 2000


@pytest.mark.slow
def test_a_candidate_that_fails_ends_the_comparison() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        compete({"x": Candidate(f"{HERE}:failing")}, rounds=1)


def test_a_line_is_a_ratio_of_medians() -> None:
    timings = {"ours": Timing([1.0, 2.0, 50.0]), "theirs": Timing([5.0, 6.0, 7.0])}
    line = speed_up("work", timings, "ours", "theirs", check="equal", goal="≥ 2")
    assert line == Row("work", "ours", "theirs", 3.0, "≥ 2", "2.00 s / 6.00 s", "equal")
    assert line.cells() == ["work", "ours", "theirs", "3.00", "≥ 2", "2.00 s / 6.00 s", "equal"]


def test_a_failed_check_is_told_at_the_end_with_exit_code_1_and_ends_no_other_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(suite: Suite) -> list[Row]:
        checks = [suite.check("FID", 2e-8, 1e-4), suite.check("IS", 3e-4, 1e-4), suite.check("KID", math.nan, 1e-4)]
        return [Row("scoring under paper", "ours", "torch-fidelity's program", 2.0, "", "", "; ".join(checks))]

    later = Row("start-up from an archive", "again", "the first time", 9.0, "", "", "")
    monkeypatch.setattr("benchmarks.__main__.PARTS", {"scoring": part, "growth": lambda suite: [later]})
    monkeypatch.setattr("benchmarks.__main__.ROOT", tmp_path)
    for page in ("README.md", "docs/speed.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(f"before {MARKS[0]}old{MARKS[1]} after")
    assert cli.run(lambda: main(["--write"])) == 1
    out, err = capsys.readouterr()
    expected = "a difference of 3.0e-04, where at most 1e-04 is expected"
    assert f"FID to 2e-08; FAILED, IS: {expected}; FAILED, KID: a difference of nan" in out
    assert f"\ncheck failed: IS: {expected}\n" in out
    assert "Traceback" not in err
    for page in ("README.md", "docs/speed.md"):
        text = (tmp_path / page).read_text()
        assert text.startswith("before ") and text.endswith(" after") and "old" not in text
        assert f"torch {torch.__version__}; {datetime.now(UTC).date()}" in text
    assert "AMX" in out.splitlines()[0]
    assert "| torch-fidelity 2.00; not measured |" in (tmp_path / "README.md").read_text()
    assert "| the first start | 9.00 |" in (tmp_path / "README.md").read_text()


def test_the_short_table_has_every_variant_of_a_whole_run() -> None:
    rows = [Row(f"training step, {name}", "ours, float32", PLAIN["float32"], 1.5, "", "", "") for name in VARIANTS]
    assert "| SN 1.50, MSN 1.50, MSN joint 1.50, MSN separate 1.50, WGAN-GP 1.50 |" in short_table(rows)


@pytest.mark.slow
@pytest.mark.parametrize("norm", steps.CONFIGS)
def test_the_plain_loop_computes_our_losses(norm: str) -> None:
    assert steps.agreement(norm, batch=8) <= steps.LOSSES


@pytest.mark.slow
def test_the_plain_loop_and_ours_take_steps(tmp_path: Path) -> None:
    write_random_images(tmp_path / "images", 40)
    for case in (
        steps.ours("mean_spectral", "fp32", str(tmp_path / "images"), batch=4),
        steps.plain_loop("mean_spectral", str(tmp_path / "images"), batch=4),
        steps.plain_loop("none", str(tmp_path / "images"), batch=4),
    ):
        assert case() != case()
    assert np.isfinite(steps.plain_loop("spectral", str(tmp_path / "images"), batch=2, precision="bf16")()).all()


@pytest.mark.slow
def test_the_bare_step_has_every_convolution_of_a_step() -> None:
    # D has seven convolutions and a dense layer, G four and one; a dense layer has two products in its backward pass, one of
    # them for the input and one for the weight.
    d_forward, d_backward, g_forward = 7 + 1, 7 + 2, 4 + 1
    g_update = (g_forward + d_forward) + (7 + 1) + (4 + 1)  # no gradient of D's weights, none of the noise
    for form, batches in (("separate", 2), ("joint", 1), ("joint_quarter", 1)):
        expected = g_forward + batches * (d_forward + d_backward) + g_update
        assert steps.bare("mean_spectral", "fp32", batch=4, d_batches=form)() == expected
    # The penalty: D forward, its gradient of the images, and the gradients of both.
    penalised = steps.bare("none", "fp32", batch=2)()
    assert (penalised - g_update) % 5 == 0
    assert (penalised - g_update) / 5 > g_forward + (d_forward + d_backward) + 2 * d_forward + d_backward
    assert steps.bare("spectral", "fp32", batch=2)() == g_forward + (d_forward + d_backward) + g_update


@pytest.mark.slow
def test_msn_word_for_word_has_the_same_gradients() -> None:
    assert norms.agreement() <= 1e-9


@pytest.mark.slow
def test_the_passes_alone_are_those_that_msn_adds_to_sn() -> None:
    # Seven convolutions take a sum over their images. Three have stride 2 and centre their gradient; of the other four, the
    # first needs no gradient of its images, and three correct it.
    passes = [one.func.__name__ for one in norms._passes(torch.float32, batch=2)]
    assert {name: passes.count(name) for name in passes} == {"summed_image": 7, "sub": 3, "subtract_image": 3}
    assert norms.with_passes("fp32", batch=2)() == pytest.approx(norms.training_step("spectral", "fp32", batch=2)())


@pytest.mark.slow
def test_a_profile_names_what_the_time_of_a_step_goes_to(tmp_path: Path) -> None:
    write_random_images(tmp_path, 40)
    found = profiles.milliseconds(steps.ours("mean_spectral", "fp32", str(tmp_path), batch=4), repeats=1)
    assert all(found[group] > 0 for group in profiles.GROUPS)
    assert found["convolutions, backward"] > found["optimiser"] / 10
    assert profiles._table("step", {"MSN": found}).count("\n") == len(found) + 2  # head, rule and the sum


@pytest.mark.slow
def test_counted_flops_are_those_of_the_layers() -> None:
    # Multiplications and additions of D's and G's layers for one image, by hand from the table in paper/notes.md.
    d = 2 * (27 * 64 * 1024 + 1024 * 64 * 256 + 576 * 128 * 256 + 2048 * 128 * 64 + 1152 * 256 * 64 + 4096 * 256 * 16
             + 2304 * 512 * 16 + 8192)  # fmt: skip
    g = 2 * (128 * 8192 + 16 * 16 * 512 * 256 + 16 * 64 * 256 * 128 + 16 * 256 * 128 * 64 + 576 * 3 * 1024)
    first_d, first_g = 2 * 27 * 64 * 1024, 2 * 128 * 8192  # whose inputs take no gradient in the player's own update
    # D: real and fake forward, backward twice; G's images for D; G forward and backward; D's verdict and its input's gradient.
    expected = 4 * (2 * (3 * d - first_d) + g + (3 * g - first_g) + 2 * d)
    counted = scaling.count("cifar10_sngan", 4)
    assert counted.flops == pytest.approx(expected, rel=0.02)  # power iterations and the like
    assert counted.penalty_flops == counted.penalty_bytes == 0
    # The penalty of five D updates on one batch: forward, the gradient of the images, and four for the second derivative.
    counted = scaling.count("cifar10_wgan_gp", 4)
    assert counted.penalty_flops == pytest.approx(5 * 4 * 6 * d, rel=0.02)
    assert 0 < counted.penalty_bytes < counted.bytes


@pytest.mark.slow
def test_all_reduces_are_those_that_a_step_takes() -> None:
    # Gradients: one an update. G's BatchNorm: four layers, two passes forward and one backward. MSN: seven layers, forward and
    # backward in each pass of D.
    assert scaling.collectives("cifar10_sngan") == 2 + 12
    for form, passes in (("joint", 2), ("joint_quarter", 2), ("separate", 3)):
        assert scaling.collectives("cifar10_msngan_written", form) == 2 + 12 + 7 * 2 * passes
    # BatchNorm with a second derivative takes a mean and a variance, and WGAN-GP's penalty is differentiated twice.
    assert scaling.collectives("cifar10_wgan_gp_bn") > 6 + 12 + 5 * 7 * 4 * 3


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["speed"], "speed: no such part"),
        (["--data", "nowhere.zip"], "expected an existing .zip"),
    ):
        assert cli.run(lambda words=words: main(words)) == 2
        assert message in capsys.readouterr().err


def test_the_pages_have_a_place_for_their_tables() -> None:
    for page in ("docs/speed.md", "README.md"):
        text = (ROOT / page).read_text()
        assert text.count(MARKS[0]) == text.count(MARKS[1]) == 1
