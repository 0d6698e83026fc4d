"""A run without a step may be started with other settings; one with a step may not."""

import os
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan.config import load_config
from gan.runs import checkpoints
from gan.runs.checkpoints import Checkpoint
from gan.runs.folder import METRICS
from gan.runs.summary import with_saved_settings
from gan.training.gan_task import GanTask
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from tests.conftest import TINY, again, command
from tests.small import change_settings

Tiny = Callable[..., list[str]]


def test_a_run_without_a_step_may_be_started_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"run.dir={tmp_path}", "run.name=a", "training.steps=2"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gan.training.gan_task.GanTask.step", killed)
        assert command([*words, "model.latent_dim=4"]) == 130
    assert (tmp_path / "a" / "config.yaml").exists()
    assert command([*words, "model.latent_dim=6"]) == 0
    assert "latent_dim: 6" in (tmp_path / "a" / "config.yaml").read_text()
    assert (tmp_path / "a" / METRICS).read_text().count('"d_loss"') == 2
    capsys.readouterr()
    assert command([*words, "model.latent_dim=4"]) == 2
    error = capsys.readouterr().err.strip()
    assert "holds a run with other settings (model.latent_dim: 6 -> 4)" in error
    named = shlex.split(error.rpartition("with its own settings: ")[2].removesuffix("."))
    assert command([*named, "training.steps=3"]) == 0
    assert (tmp_path / "a" / METRICS).read_text().count('"d_loss"') == 3


def test_a_kill_within_the_start_from_initial_weights_leaves_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    words = [*TINY, f"run.dir={tmp_path}", "run.name=a", "training.steps=1", f"training.initial={finished_run}"]
    written: list[str] = []

    def killed(path: Path, content: bytes) -> None:
        if written and path.parent == tmp_path / "a":
            raise KeyboardInterrupt
        write_atomically(path, content)
        written.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr("gan.runs.folder.write_atomically", killed)
        assert command(words) == 130
    assert written == ["config.yaml"]
    assert command(words) == 0
    assert (tmp_path / "a" / "initial.json").exists()


def test_a_run_that_another_process_has_started_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    words = [*TINY, f"run.dir={tmp_path}", "run.name=a", "training.steps=1", "seed=5"]

    def start_other(*_: object) -> None:
        shutil.copytree(finished_run, tmp_path / "a")

    with monkeypatch.context() as patch:
        patch.setattr("gan.training.loop._restore", start_other)
        assert command(words) == 2
    assert "another process has started a run in it meanwhile" in capsys.readouterr().err
    for name in ("config.yaml", METRICS, "environment.json"):
        assert (tmp_path / "a" / name).read_bytes() == (finished_run / name).read_bytes()


@pytest.mark.parametrize("keep", [2, 3])
def test_checkpoints_are_ordered_by_their_step_and_other_folders_are_left_alone(tmp_path: Path, keep: int) -> None:
    (tmp_path / "step-00000012.bak").mkdir()
    for step in (99_999_000, 99_999_999, 100_000_000):
        checkpoints.save(tmp_path, Checkpoint(step, {}, {}, "", ""), keep=keep)
    names = ["step-99999000", "step-99999999", "step-100000000"][-keep:]
    assert [path.name for path in checkpoints.steps(tmp_path)] == names
    assert (tmp_path / "step-00000012.bak").is_dir()


def test_a_run_inside_its_own_images_is_refused(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.new("L", (32, 32), 30 * number).save(images / f"{number}.png")
    settings = ["data.name=folder", f"data.path={images}", f"run.dir={images / 'runs'}"]
    assert command(tiny(*settings)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "would become training images. Set run.dir to a folder outside" in error
    assert not (images / "runs").exists()


def test_a_path_that_digits_do_not_have_is_refused(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny("data.path=my_images")) == 2
    assert "Set data.name=folder for the images there" in capsys.readouterr().err


def test_a_copied_run_is_resumed_where_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, run.parent / "copy"))
    assert command(again(copy, "training.batch_size=4")) == 2
    error = capsys.readouterr().err
    assert f"--config {copy / 'config.yaml'} run.dir={copy.parent} run.name=copy" in error
    # The file alone names the folder that it was copied from.
    assert command(["--config", str(copy / "config.yaml"), "--dry-run"]) == 0
    assert f"add run.dir={copy.parent} run.name=copy" in capsys.readouterr().err
    assert command([*again(copy), "--dry-run"]) == 0
    assert "add run.dir" not in capsys.readouterr().err


def test_a_run_whose_folder_is_moved_while_it_trains_ends_in_one_line(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take = GanTask.step
    folder = tmp_path / "runs" / "tiny"

    def step(self: GanTask, number: int) -> Any:
        if number == 2:
            folder.rename(tmp_path / "elsewhere")
        return take(self, number)

    monkeypatch.setattr(GanTask, "step", step)
    for every in ("samples.every=0", "samples.every=1"):
        assert command(tiny("training.steps=4", "checkpoint.every=2", every)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "moved or removed while the run was training. The run is saved up to step 2" in error
        assert not folder.exists(), "no second run beside the moved one"
        monkeypatch.setattr(GanTask, "step", take)
        (tmp_path / "elsewhere").rename(folder)
        assert command(tiny("training.steps=4", "checkpoint.every=2", every)) == 0
        shutil.rmtree(folder)
        monkeypatch.setattr(GanTask, "step", step)


def test_a_run_keeps_its_batches_whatever_those_of_the_new_default_would_need(run: Path) -> None:
    # joint_quarter, which auto is here, needs a batch that 16 divides for four processes.
    change_settings(run, lambda text: text.replace("d_batches: separate", "d_batches: joint"))
    settings = ["training.d_batches=auto", f"run.dir={run.parent}"]
    found, saved = with_saved_settings(load_config(run / "config.yaml", [*settings, "run.name=run"]), 4)
    assert saved is not None and found.training.d_batches == "joint"
    with pytest.raises(UserError, match="must be a multiple of 16"):
        with_saved_settings(load_config(run / "config.yaml", [*settings, "run.name=another"]).resolve(), 4)


def test_files_that_a_group_shares_are_as_writable_as_its_umask_says(tiny: Tiny, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        assert command(tiny("training.steps=1")) == 0
    finally:
        os.umask(before)
    folder = tmp_path / "runs" / "tiny"
    for name in (".lock", "metrics.jsonl", "config.yaml"):
        assert (folder / name).stat().st_mode & 0o060 == 0o060, name


def test_a_machine_that_cannot_compile_is_one_line(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def fail(self: GanTask, number: int) -> Any:
        raise missing("InvalidCxxCompiler: No working C++ compiler found\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr("gan.training.gan_task.step_function", lambda *_: partial(fail, None))
    with pytest.raises(missing):  # without torch.compile it is no mistake of the user
        command(tiny("training.steps=1"))
    assert command(tiny("training.steps=1", "training.compile=true", "run.name=compiled")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "training.compile=true: torch cannot compile here (InvalidCxxCompiler: No working C++ compiler found)" in error
