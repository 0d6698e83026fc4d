"""The command ``eval compare``: two groups of trainings, their verdict, and what is no fair comparison."""

import json
import shutil
from pathlib import Path

import pytest

from eval.__main__ import main
from gan.utils import cli
from tests.conftest import TINY, command
from tests.small import change_settings, scale_down


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 2 steps: an_0, an_1, bn_0, bn_1 (another norm), and later_0 of 3 steps."""
    folder = tmp_path_factory.mktemp("trained")
    for name, seed, *extra in (
        ("an_0", 0), ("an_1", 1), ("bn_0", 0, "model.generator.norm=none"), ("bn_1", 1, "model.generator.norm=none"),
        ("later_0", 0, "training.steps=3"), ("large_0", 0, "data.image_size=40"),
    ):  # fmt: skip
        arguments = [*TINY, f"run.dir={folder}", f"run.name={name}", f"seed={seed}", "training.steps=2", "samples.every=0"]
        assert command([*arguments, *map(str, extra)]) == 0
    return folder


def run(*arguments: str | Path) -> int:
    return cli.run(lambda: main(["compare", *map(str, arguments), "--extractor", "efficientnet-lite0", "--resamples", "5"]))


def test_groups_of_two_seeds_get_intervals_and_a_verdict(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    sides = [trained / "an_0", trained / "an_1", "--against", trained / "bn_0", trained / "bn_1"]
    assert run(*sides, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["differences"]) == {"fid", "inception_score", "kid"}
    for value in found["differences"].values():
        assert value["difference"] == pytest.approx(value["a"] - value["b"])
        assert value["interval"][0] < value["difference"] < value["interval"][1]
        assert value["seeds"] == [2, 2]
    assert [side["seed"] for side in found["a"]] == [0, 1] and found["provenance"]["resamples"] == 5
    assert run(*sides) == 0
    text = capsys.readouterr().out
    verdict = found["differences"]["fid"]["verdict"]
    assert f"A - B {found['differences']['fid']['difference']:+.2f}: {verdict}" in text
    assert len(text.splitlines()) == 9


def test_checkpoints_of_one_step_are_one_group_whatever_length_their_runs_have(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless the learning rate depends on the length: then they were trained differently."""
    scale_down(monkeypatch)
    longer = trained / "longer_1"
    if not longer.exists():
        shutil.copytree(trained / "an_1", longer)
        change_settings(longer, lambda text: text.replace("steps: 2\n", "steps: 3\n"))
    sides = [trained / "an_0", longer, "--against", trained / "bn_0", trained / "bn_1"]
    assert run(*sides, "--json") == 0
    assert json.loads(capsys.readouterr().out)["differences"]["fid"]["seeds"] == [2, 2]
    for run_folder in (longer, trained / "an_0"):
        change_settings(run_folder, lambda text: text.replace("decay: none", "decay: linear"))
    try:
        assert run(*sides) == 2
        assert "differ by more than the seed (training.steps)" in capsys.readouterr().err
    finally:
        change_settings(trained / "an_0", lambda text: text.replace("decay: linear", "decay: none"))


def test_one_seed_is_no_verdict(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scale_down(monkeypatch)
    assert run(trained / "an_0", "--against", trained / "later_0") == 0
    text = capsys.readouterr().out
    assert "no verdict: both sides have a single training seed" in text and "over seeds unknown" in text


def test_images_are_told_apart_by_their_files_not_by_their_path(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    other = Path(shutil.copytree(trained / "bn_0", tmp_path / "other"))
    change_settings(other, lambda text: text.replace("  path: null\n", "  path: /moved\n"))
    assert run(trained / "an_0", "--against", other) == 0
    environment = json.loads((other / "environment.json").read_text())
    environment["starts"][-1]["data"] = "another-1797x1x32x32"
    (other / "environment.json").write_text(json.dumps(environment))
    capsys.readouterr()
    assert run(trained / "an_0", "--against", other) == 2
    assert "were trained on different images (files)" in capsys.readouterr().err
    (other / "environment.json").unlink()
    assert run(trained / "an_0", "--against", other) == 0, "not known"


def test_averaged_and_raw_generators_do_not_compare(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    arguments = [
        *TINY,
        f"run.dir={tmp_path}",
        "run.name=raw",
        "seed=1",
        "training.steps=2",
        "samples.every=0",
        "training.ema_decay=0",
    ]
    assert command(arguments) == 0
    capsys.readouterr()
    sides = [trained / "an_0", "--against", tmp_path / "raw"]
    assert run(*sides) == 2
    assert "an_0 is an averaged generator" in capsys.readouterr().err
    assert run(*sides, "--weights", "raw") == 0


@pytest.mark.parametrize(
    "a, b, message",
    [
        (["an_0"], ["an_0"], "is on both sides"),
        (["an_0", "bn_1"], ["later_0"], "differ by more than the seed (model.generator.norm)"),
        (["bn_0"], ["an_1", "later_0"], "--against: the runs stand at different steps (2, 3)"),
        (["an_0"], ["large_0"], "trained on different images (data.image_size, files)"),
        (["an_0"], ["copy"], "is on both sides, weight for weight"),
        (["an_0", "copy"], ["bn_0"], "are the same training (equal settings, seed 0)"),
        (["an_0"], ["missing"], "no such folder"),
    ],
)
def test_unfair_comparisons_are_refused(
    a: list[str], b: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (trained / "copy").exists():
        shutil.copytree(trained / "an_0", trained / "copy")
    assert run(*(trained / name for name in a), "--against", *(trained / name for name in b)) == 2
    *found, error = capsys.readouterr().err.strip().splitlines()
    assert message in error
    assert all("weights" in line for line in found)  # which checkpoint was taken, nothing else
