"""Damaged images are all named before the first step, and a run resumes on changed images only knowingly."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import gan.__main__ as program
from gan.data import image_files
from gan.training import loop
from gan.utils import cli
from tests.conftest import command

Tiny = Callable[..., list[str]]
Capsys = pytest.CaptureFixture[str]
SAVED = ["checkpoint.every=1", "samples.every=0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 bitmaps of random colours."""
    images = tmp_path / "images"
    images.mkdir()
    draw = np.random.default_rng(0)
    for index in range(40):
        Image.fromarray(draw.integers(0, 100, (32, 32, 3), np.uint8)).save(images / f"{index:02d}.bmp")
    return images


def on(folder: Path, *settings: str) -> list[str]:
    return ["data.name=folder", f"data.path={folder}", *SAVED, *settings]


def starts(tmp_path: Path) -> list[dict[str, Any]]:
    return list(json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())["starts"])


def damage(*files: Path) -> None:
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])


def invert(file: Path) -> None:
    """Change an image in place: its name and size stay."""
    inverted = ImageOps.invert(Image.open(file))
    inverted.save(file)


@pytest.mark.parametrize("keep_times", [False, True])
def test_an_image_changed_in_place_is_noticed(keep_times: bool, folder: Path, tiny: Tiny, capsys: Capsys) -> None:
    assert command(tiny(*on(folder, "training.steps=1"))) == 0
    file = folder / "17.bmp"
    before = file.stat()
    time.sleep(0.01)  # the clock of a file system has ticks
    invert(file)
    if keep_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert command(tiny(*on(folder, "training.steps=2"))) == 2
    assert "files of the same names and sizes, but other contents" in capsys.readouterr().err


def test_a_copy_of_the_images_is_accepted(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    assert command(tiny(*on(folder, "training.steps=1"))) == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        shutil.copyfile(file, copy / file.name)
    assert command(tiny(*on(copy, "training.steps=2"))) == 0
    first, second = starts(tmp_path)
    assert first["data_times"] != second["data_times"]
    assert first["data_sample"] == second["data_sample"]
    assert "accepted_changes" not in second


def test_files_whose_times_are_the_same_are_not_read_to_compare_them(
    folder: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(tiny(*on(folder, "training.steps=1"))) == 0
    monkeypatch.setattr(image_files.FolderSource, "sample", pytest.fail)
    assert command(tiny(*on(folder, "training.steps=2"))) == 0


def test_a_part_of_many_files_is_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = image_files.FolderSource(folder)
    read: list[str] = []
    whole = image_files.FolderSource._read_file
    monkeypatch.setattr(image_files.FolderSource, "_read_file", lambda self, name: read.append(name) or whole(self, name))
    monkeypatch.setattr(image_files, "_SAMPLE_FILES", 10)
    source.sample()
    assert len(read) == 10
    read.clear()
    monkeypatch.setattr(image_files, "_SAMPLE_BYTES", 5 * (folder / "00.bmp").stat().st_size)
    source.sample()
    assert len(read) == 5


def test_a_run_without_a_record_of_times_resumes(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    assert command(tiny(*on(folder, "training.steps=1"))) == 0
    record = tmp_path / "runs" / "tiny" / "environment.json"
    old = [{key: value for key, value in start.items() if key not in ("data_times", "data_sample")} for start in starts(tmp_path)]
    record.write_text(json.dumps({"starts": old}))
    assert command(tiny(*on(folder, "training.steps=2"))) == 0
    assert "data_sample" in starts(tmp_path)[-1]


@pytest.mark.parametrize("change", ["content", "number"])
def test_changes_are_accepted_knowingly_and_once(change: str, folder: Path, tiny: Tiny, tmp_path: Path, capsys: Capsys) -> None:
    assert command(tiny(*on(folder, "training.steps=1"))) == 0
    invert(folder / "17.bmp") if change == "content" else (folder / "17.bmp").unlink()
    assert command(tiny(*on(folder, "training.steps=2"))) == 2
    assert "go on with these by data.accept_changes=true." in capsys.readouterr().err
    assert command(tiny(*on(folder, "training.steps=2", "data.accept_changes=true"))) == 0
    first, second = starts(tmp_path)
    assert second["accepted_changes"] == {key: first[key] for key in ("data", "data_times", "data_sample")}
    assert "accept_changes: false" in (tmp_path / "runs" / "tiny" / "config.yaml").read_text()
    assert command(tiny(*on(folder, "training.steps=3"))) == 0  # these images are now the run's own
    assert "accepted_changes" not in starts(tmp_path)[-1]
    invert(folder / "18.bmp")
    assert command(tiny(*on(folder, "training.steps=4"))) == 2


def test_an_acceptance_outlives_a_run_that_saved_nothing_since(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    assert command(tiny(*on(folder, "training.steps=1"))) == 0
    shutil.copytree(tmp_path / "runs" / "tiny" / "checkpoints", tmp_path / "kept")
    (folder / "17.bmp").unlink()
    assert command(tiny(*on(folder, "training.steps=2", "data.accept_changes=true"))) == 0
    for _ in range(2):  # as if it had been killed before its first checkpoint
        shutil.rmtree(tmp_path / "runs" / "tiny" / "checkpoints")
        shutil.copytree(tmp_path / "kept", tmp_path / "runs" / "tiny" / "checkpoints")
        assert command(tiny(*on(folder, "training.steps=2"))) == 0


@pytest.mark.parametrize("memory", ["data.memory_gb=0", "data.memory_gb=4"])
def test_all_damaged_images_are_named_before_the_first_step(
    memory: str, folder: Path, tiny: Tiny, tmp_path: Path, capsys: Capsys
) -> None:
    damage(folder / "08.bmp", folder / "29.bmp", folder / "31.bmp")
    assert command(tiny(*on(folder, "training.steps=2", memory))) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: 3 of 40 images cannot be read. Repair or remove them: " in error
    assert all(str(folder / name) in error for name in ("08.bmp", "29.bmp", "31.bmp"))
    assert not (tmp_path / "runs").exists()
    for name in ("08.bmp", "29.bmp", "31.bmp"):
        (folder / name).unlink()
    assert command(tiny(*on(folder, "training.steps=2", memory))) == 0


def test_an_image_that_is_damaged_later_ends_the_run_with_its_steps_saved_and_it_goes_on(
    folder: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    monkeypatch.setattr(loop, "_CHECK_SECONDS", -1)  # as if the images were too many to be checked
    damage(folder / "17.bmp")
    streamed = on(folder, "data.memory_gb=0", "data.workers=0", "checkpoint.every=100")
    assert command(tiny(*streamed, "training.steps=50")) == 2
    errors = capsys.readouterr().err
    assert "checked 0 of 40 images" in errors
    assert "17.bmp: a damaged image" in errors
    assert "the same command resumes from there, with data.accept_changes=true after a change of images." in errors
    step = int(errors.partition("saved up to step ")[2].partition(";")[0])
    assert 1 <= step < 5
    (folder / "17.bmp").unlink()
    again = tiny(*streamed, f"training.steps={step + 1}")
    assert command(again) == 2
    assert command([*again, "data.accept_changes=true"]) == 0
    assert f"from step {step} to {step + 1}" in capsys.readouterr().err


def check(*arguments: str) -> int:
    return cli.run(lambda: program.main(["check", *arguments]))


def test_check_says_what_a_folder_or_zip_holds(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    for name, kind in (("00.bmp", "ape"), ("01.bmp", "ape"), ("02.bmp", "bee")):
        (folder / "by kind" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, folder / "by kind" / kind / name)
    Image.new("L", (50, 70)).save(folder / "by kind" / "bee" / "grey.png")
    (folder / "by kind" / "notes.txt").write_text("text")
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", folder / "by kind")
    for path in (str(folder / "by kind"), archive):
        assert check(path, "--workers", "2") == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "images:   4 (3 in colour, 1 grey)"
        assert said[1].startswith("sizes:    32x32 to 50x70")
        assert said[2] == "classes:  2: ape 2, bee 2"
        assert said[3].endswith("1 file of other kinds left out: 1 .txt")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_check_names_every_damaged_image(workers: str, folder: Path, capsys: Capsys) -> None:
    damage(*(folder / f"{index:02d}.bmp" for index in range(0, 40, 4)))
    assert check(str(folder), "--workers", workers) == 2
    said = capsys.readouterr()
    damaged = [line for line in said.out.splitlines() if line.startswith("damaged:  ")]
    assert len(damaged) == 10
    assert all(f"{index:02d}.bmp: a damaged image" in line for index, line in zip(range(0, 40, 4), damaged, strict=True))
    assert said.err.splitlines()[-1].endswith("10 of 40 images cannot be read (listed above). Repair or remove them.")
