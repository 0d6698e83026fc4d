"""Disks that are full, read-only, slow or out of inodes, and bytes that changed: one line, nothing lost, and the run goes on."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gan.runs import checkpoints
from tests.conftest import TINY
from tests.training.test_resume import contents
from tests.workers import in_process, run_to_the_end, train_on_a_slow_disk, train_to_the_end

STEPS = ["training.steps=40", "checkpoint.every=2", "checkpoint.keep=2", "samples.every=10", "training.batch_size=4"]
ROOT = Path(__file__).parent.parent.parent
LIMIT = 120  # seconds that a run of a few steps may take


WORDS = [sys.executable, str(ROOT / "train.py"), *TINY, *STEPS, "run.dir=.", "run.name=run"]  # the same wherever it is run


def train(folder: Path, *, file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """``train.py`` as a user calls it, to its end; with a limit on the size of a file where asked."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        WORDS, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        timeout=LIMIT, preexec_fn=limit,
    )  # fmt: skip


@contextmanager
def training(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The same, running, once it has saved for the first time."""
    with subprocess.Popen(
        WORDS, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + LIMIT
        while not checkpoints.steps(folder / "run" / "checkpoints"):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.005)
        try:
            yield process
        finally:
            process.kill()


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no right to mount ({done.stderr.strip()})")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a small file system of its own, with options for tmpfs."""
    place = tmp_path / "disk"

    def make(options: str) -> Path:
        place.mkdir()
        mount("-t", "tmpfs", "-o", options, "tmpfs", str(place))
        return place

    yield make
    subprocess.run(["umount", "--recursive", str(place)], capture_output=True, check=False)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("calm")
    done = train(folder)
    assert done.returncode == 0, done.stderr
    return contents(folder / "run")


def the_one_line(errors: str) -> str:
    assert "Traceback" not in errors, errors
    found = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(found) == 1, errors
    return found[0]


def check_stopped_and_goes_on(
    code: int, errors: str, words: str, folder: Path, calm: dict[str, object], mend: Callable[[], object]
) -> None:
    """It ended with 2 and one line, its last checkpoint is whole, and once ``mend`` was called the same command ends ``calm``."""
    assert code == 2, errors
    line = the_one_line(errors)
    assert words in line
    kept = checkpoints.newest(folder / "run" / "checkpoints", print)
    if "saved up to step" in line:
        assert kept is not None
        assert f"saved up to step {kept.step}. Once this is repaired, the same command resumes from there." in line
    mend()
    done = train(folder)
    assert done.returncode == 0, done.stderr
    assert f"from step {kept.step if kept else 0} to 40" in done.stderr
    assert contents(folder / "run") == calm


@pytest.mark.faults
def test_a_full_disk_stops_a_run_in_one_line_and_with_room_it_goes_on(
    disk: Callable[[str], Path], calm: dict[str, object]
) -> None:
    folder = disk("size=64m")
    with training(folder) as process:
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file:  # other people's data
            while process.poll() is None:
                try:
                    file.write(bytes(4096))
                except OSError:
                    time.sleep(0.001)
        _, errors = process.communicate(timeout=LIMIT)
    check_stopped_and_goes_on(process.returncode, errors, "No space left on device", folder, calm, filler.unlink)


@pytest.mark.faults
def test_a_disk_without_inodes_is_one_line_and_with_some_it_goes_on(disk: Callable[[str], Path], calm: dict[str, object]) -> None:
    folder = disk("size=64m,nr_inodes=300")
    others = folder / "others"
    others.mkdir()
    with training(folder) as process:
        count = 0
        while process.poll() is None:
            try:
                (others / f"{count}").touch()
                count += 1
            except OSError:
                time.sleep(0.001)
        _, errors = process.communicate(timeout=LIMIT)
    assert count > 200
    mend = lambda: shutil.rmtree(others)  # noqa: E731
    check_stopped_and_goes_on(process.returncode, errors, "No space left on device", folder, calm, mend)


@pytest.mark.faults
@pytest.mark.parametrize("room", range(10, 100, 6))
def test_a_run_that_finds_any_amount_of_room_never_leaves_half_a_thing(
    room: int, disk: Callable[[str], Path], calm: dict[str, object]
) -> None:
    folder = disk(f"size={room * 4}k")
    done = train(folder)
    assert done.returncode == 2, done.stderr
    line = the_one_line(done.stderr)
    assert "No space left on device" in line
    for name in ("metrics.jsonl", "scores.jsonl"):
        if (folder / "run" / name).exists():
            assert all(json.loads(text)["step"] >= 0 for text in (folder / "run" / name).read_text().splitlines())
    for checkpoint in checkpoints.steps(folder / "run" / "checkpoints"):
        checkpoints.load(checkpoint)
    mount("-o", "remount,size=64m", str(folder))
    done = train(folder)
    assert done.returncode == 0, done.stderr
    assert contents(folder / "run") == calm


def train_limited(arguments: list[str], file_bytes: int, errors: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    run_to_the_end("train", arguments, errors)


@pytest.mark.slow
def test_a_run_that_cannot_save_says_so_in_one_line_and_goes_on_where_it_can(tmp_path: Path) -> None:
    words, run, errors = [*TINY, *STEPS, f"run.dir={tmp_path}", "run.name=run"], tmp_path / "run", tmp_path / "errors"
    assert in_process(train_to_the_end, words) == 0
    expected = contents(run)
    shutil.rmtree(run)
    assert in_process(train_limited, words, 4000, errors) == 2  # a picture has more bytes
    line = the_one_line(errors.read_text())
    assert "File too large" in line
    assert in_process(train_to_the_end, words) == 0
    assert contents(run) == expected


@pytest.mark.faults
@pytest.mark.parametrize("size", [0, 100, 1000, 4000, 20_000, 100_000])
def test_a_limit_on_the_size_of_files_is_one_line_and_without_it_the_run_goes_on(
    size: int, tmp_path: Path, calm: dict[str, object]
) -> None:
    done = train(tmp_path, file_bytes=size)
    check_stopped_and_goes_on(done.returncode, done.stderr, "File too large", tmp_path, calm, lambda: None)


@pytest.mark.faults
def test_a_disk_that_turns_read_only_stops_the_run_in_one_line(disk: Callable[[str], Path], calm: dict[str, object]) -> None:
    folder = disk("size=64m")
    with training(folder) as process:
        place = str(folder / "run" / "checkpoints")
        mount("--bind", place, place)
        mount("-o", "remount,ro,bind", place)
        _, errors = process.communicate(timeout=LIMIT)
    mend = lambda: subprocess.run(["umount", place], check=True)  # noqa: E731
    check_stopped_and_goes_on(process.returncode, errors, "Read-only file system", folder, calm, mend)


@pytest.mark.faults
def test_a_read_only_disk_is_told_before_anything_is_trained(disk: Callable[[str], Path]) -> None:
    folder = disk("size=64m,ro")
    done = train(folder)
    assert done.returncode == 2
    assert "cannot be written to (Read-only file system). Set run.dir to a folder that can." in the_one_line(done.stderr)


@pytest.mark.faults
def test_a_slow_disk_changes_nothing(tmp_path: Path) -> None:
    words = [*TINY, *STEPS, f"run.dir={tmp_path}", "run.name=run"]
    assert in_process(train_to_the_end, words) == 0
    expected = contents(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert in_process(train_on_a_slow_disk, words, 0.05) == 0
    assert contents(tmp_path / "run") == expected


def changes(content: bytes, every: int) -> Iterator[tuple[str, bytes]]:
    """``content`` with each ``every``-th byte flipped, and with each of them missing."""
    for place in (*range(0, len(content), every), len(content) - 1):
        for bit in (0, 5):
            yield (
                f"bit {bit} of byte {place} flipped",
                content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :],
            )
        yield f"byte {place} missing", content[:place] + content[place + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("every", [101, pytest.param(1, marks=pytest.mark.faults)])
def test_any_flipped_or_missing_byte_of_a_checkpoint_is_noticed_and_the_one_before_is_taken(
    every: int, finished_run: Path, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(finished_run / "checkpoints", root)
    newest = checkpoints.steps(root)[-1]
    tried = 0
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        # Each byte of what has the checksums, some of the large files that they are of.
        for what, changed in changes(content, every if len(content) < 2000 else every * (len(content) // 50)):
            path.write_bytes(changed)
            told: list[str] = []
            found = checkpoints.newest(root, told.append)
            assert found is not None
            assert found.step == 2, f"{path.name}: {what} was not noticed"
            assert "step-00000004" in told[0] and "step-00000002 is used instead." in told[0]
            tried += 1
        path.unlink()
        found = checkpoints.newest(root, told.append)
        assert found is not None and found.step == 2, f"{path.name} is missing, and that was not noticed"
        path.write_bytes(content)
    assert tried > 3000 // every
    found = checkpoints.newest(root, print)
    assert found is not None and found.step == 4


def test_checkpoints_of_the_format_before_are_read(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000004"
    shutil.copytree(finished_run / "checkpoints" / "step-00000004", folder)
    manifest = folder / "checkpoint.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    (folder / "checkpoint.sha256").unlink()
    assert checkpoints.load(folder).step == 4
