"""What the commands status and sweep --status say of runs that are done, stopped, running, diverged or damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gan.__main__
from gan.runs import lock
from gan.runs.checkpoints import steps
from gan.runs.manifest import MANIFEST, SEAL, read_manifest, seal
from gan.runs.status import find_runs, read_status
from gan.utils import cli
from gan.utils.errors import UserError
from tests.conftest import again, command
from tests.launch.test_grid import DIGITS, sweep


def status(*words: object) -> int:
    """Return the exit code of ``python -m gan status WORDS``, run in this process."""
    return cli.run(lambda: gan.__main__.main(["status", *map(str, words)]))


def test_a_finished_run_is_done_and_a_longer_one_has_time_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(run, "--watch") == 0, "a watch ends when all runs have"
    text = capsys.readouterr().out
    assert text.startswith(f"{run}: done, step 4 of 4\n")
    assert "left" not in text
    assert "d_loss" in text and "g_loss" in text
    assert "held by: nobody" in text
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    found = read_status(run, total=10)
    assert (found.state, found.step, found.total) == ("stopped", 4, 10)
    assert found.steps_per_second == pytest.approx(last["images_per_second"] / 8)
    assert found.seconds_left == pytest.approx(6 * 8 / last["images_per_second"])


def test_a_run_that_was_stopped_within_its_last_evaluation_is_not_done(run: Path) -> None:
    (steps(run / "checkpoints")[-1] / "look-pending").touch()
    assert read_status(run).state == "stopped"


def test_the_process_that_holds_a_run_is_named_while_it_does(run: Path) -> None:
    with lock.lock_run(run):
        assert read_status(run).holder == "", "it has not signed yet"
        lock.sign(run)
        found = read_status(run)
        assert found.state == "running"
        assert found.holder.startswith("process ")
    assert read_status(run).holder == ""
    lock.sign(run)  # as after a kill: the lock is gone, the name is left
    assert read_status(run).holder == ""


def test_health_warnings_are_told(run: Path) -> None:
    line = {"step": 4, "images_per_second": 8.0, "seconds": 1.0, "d_loss": 1.4, "g_loss": 0.7, "d_chance_steps": 2500}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n" + json.dumps({"step": 300, "samples_spread": 0.01}) + "\n")
    (run / "diverged.json").write_text(json.dumps({"reason": "gradients have exploded"}))
    found = read_status(run)
    assert found.state == "diverged"
    assert found.warnings == [
        "gradients have exploded", "D at chance for 2500 steps", "samples collapsed at step 300 (spread 1.0% of real images)"
    ]  # fmt: skip


def test_the_last_and_the_best_score_are_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.small import scale_down

    scale_down(monkeypatch)
    more = ["training.steps=8", "evaluation.every=2", "evaluation.extractor=efficientnet-lite0"]
    assert command(again(run, *more)) == 0
    distances = [json.loads(line)["scores"]["pooled"]["fid"] for line in (run / "scores.jsonl").read_text().splitlines()]
    assert len(distances) >= 2
    expected = f"Frechet distance {distances[-1]:.4g}, best {min(distances):.4g} at step"
    assert read_status(run).score.startswith(expected)


def test_a_folder_stands_for_the_runs_in_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(run.parent, run) == 0
    assert capsys.readouterr().out.count("step 4 of 4") == 1


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.yaml", "[", "not YAML"),
        ("config.yaml", "a: ${oc.env:HOME}", "is not looked up"),
        ("config.yaml", "1", "not a configuration"),
        ("config.yaml", "training: {steps: -1, batch_size: 8}", "training.steps=-1"),
        ("metrics.jsonl", "{\n", "a line is damaged"),
        ("scores.jsonl", "{}\n", "is not a score"),
    ],
)
def test_a_damaged_file_costs_one_line(
    file: str, content: str, expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).write_text(content)
    assert status(run) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error and file in error


def test_a_folder_without_runs_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(tmp_path) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: no run. Expected a run's folder (with config.yaml in it), or one that contains runs.\n"
    )


def test_the_status_of_a_sweep_lists_every_run_of_its_grid(
    run: Path, tiny: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.rename(tmp_path / "digits_msngan_seed0")
    (tmp_path / "digits_msngan_seed2").mkdir()
    (tmp_path / "digits_msngan_seed2" / "config.yaml").write_text("[")
    words = [word for word in tiny("training.steps=10") if not word.startswith("run.")]
    assert sweep("--config", str(DIGITS), "--set", *words, f"run.dir={tmp_path}", "--seeds", "0", "1", "2", "--status") == 0
    head, first, second, third, _, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "step", "left", "score", "health"]
    assert "stopped" in first and "step 4 of 10" in first
    assert second.split() == [str(tmp_path / "digits_msngan_seed1"), "waiting"]
    assert "damaged" in third and "not YAML" in third
    assert last == "3 runs: 1 stopped, 1 waiting, 1 damaged"


def test_a_run_of_another_user_is_seen_to_be_held(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock file cannot be written to by the one who asks."""
    opened = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if Path(path).name == ".lock" and flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    with lock.lock_run(run):
        lock.sign(run)
        monkeypatch.setattr(os, "open", refusing)
        assert lock.is_locked(run)
        assert lock.holder(run).startswith(f"process {os.getpid()}")


def test_no_name_in_a_run_reaches_the_terminal_as_a_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed = run.rename(run.with_name("a\x1b[31mred"))
    assert status(renamed) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert text.startswith(f"{run.parent}/a\\x1b[31mred: done")


@pytest.mark.parametrize("written", ["1e999", "9" * 400])
def test_a_lock_with_a_number_beyond_all_is_one_without_a_name(written: str, run: Path) -> None:
    (run / ".lock").write_text(f'{{"process": {written}, "host": "x", "since": "y"}}')
    assert read_status(run).holder == ""


def test_a_classifier_of_more_steps_than_any_number_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {epochs: 1e300, batch_size: 1e-9}\n")
    (tmp_path / "environment.json").write_text('{"starts": [{"data": "x-100x1"}]}')
    with pytest.raises(UserError, match=r"config\.yaml: damaged"):
        read_status(tmp_path)


@pytest.mark.parametrize("number", ["9" * 400, "0"])
def test_a_recorded_number_of_images_beyond_all_leaves_the_steps_unknown(number: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {epochs: 2, batch_size: 10}\n")
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [{"data": f"x-{number}x1"}]}))
    assert read_status(tmp_path).total is None


@pytest.mark.parametrize("step", [4.5, "4", -1, True])
def test_a_checkpoint_whose_step_is_no_whole_number_is_damaged(step: Any, run: Path) -> None:
    folder = steps(run / "checkpoints")[-1]
    found = json.loads((folder / MANIFEST).read_bytes()) | {"step": step}
    (folder / MANIFEST).write_text(json.dumps(found))
    (folder / SEAL).write_bytes(seal((folder / MANIFEST).read_bytes()))
    with pytest.raises(UserError, match=r"checkpoint\.json is damaged"):
        read_manifest(folder)


def test_exports_are_no_runs_and_a_checkpoint_is_one_of_its_run(run: Path) -> None:
    assert find_runs(steps(run / "checkpoints")[-1]) == [run.resolve()]
    (run.parent / "export").mkdir()
    for name in ("config.yaml", MANIFEST):
        (run.parent / "export" / name).write_bytes((steps(run / "checkpoints")[-1] / name).read_bytes())
    assert find_runs(run.parent) == [run]
    with pytest.raises(UserError, match="no run"):
        find_runs(run.parent / "export")


def test_a_damaged_run_does_not_hide_the_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(run, run.parent / "zdamaged")
    (damaged / "metrics.jsonl").write_text("{\n")
    assert status(run.parent) == 0
    shown = capsys.readouterr().out
    assert "step 4 of 4" in shown and f"{damaged}: damaged: " in shown
