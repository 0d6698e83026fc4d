"""Stopped by SIGTERM or Ctrl-C at any moment: saved first, gone within 30 seconds, one line, and the same command goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.extractors import EXTRACTORS, Extractor
from gan.runs import checkpoints
from gan.utils import cli
from tests.faults.common import BETTER, Capsys, Tiny, empty_cache, nothing_half, pictures, tell
from tests.small import scale_down
from tests.training.test_resume import calm, contents, last_step
from tests.workers import PROGRAMS, in_process, run_to_the_end, train_to_the_end

STOPS = (signal.SIGTERM, signal.SIGINT)
UNHEARD = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}  # exit codes where no step has been taken yet
STEPPING = ["training.steps=60", "checkpoint.every=60", "evaluation.every=7"]  # nothing but a stop saves on the way


def check_stopped(code: int, number: int, run: Path, said: str) -> bool:
    """That a stopped run has lost nothing and says so in a line; whether it had begun stepping."""
    assert "Traceback" not in said, said
    saved = checkpoints.steps(run / "checkpoints")
    if last_step(run) > 0:
        assert saved, said
        assert saved[-1].name == f"step-{last_step(run):08d}", said
    if "stopped by" in said:
        assert code == 128 + number, said
        return True
    assert code == UNHEARD[signal.Signals(number)], said
    assert number == signal.SIGTERM or said.splitlines()[-1] == "error: interrupted.", said
    return False


@pytest.mark.faults
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_run_stopped_at_random_moments_saves_first_and_ends_the_same(
    number: signal.Signals, tmp_path: Path, tiny: Tiny, capsys: Capsys
) -> None:
    arguments, run, errors = tiny(*BETTER, *STEPPING), tmp_path / "runs" / "tiny", tmp_path / "errors"
    calm(arguments, run)
    shutil.rmtree(run)
    began = time.monotonic()
    expected = calm(arguments, run)
    seconds = time.monotonic() - began
    shutil.rmtree(run)
    moments, stops, unheard, slowest = random.Random(0), 0, 0, 0.0
    while stops < 10:
        after = moments.uniform(0.02, 0.5) * seconds
        began = time.monotonic()
        code = in_process(run_to_the_end, "train", arguments, errors, kill_after=after, signals=(number,))
        slowest = max(slowest, time.monotonic() - began - after)
        if code == 0:
            assert contents(run) == expected
            shutil.rmtree(run)
        elif check_stopped(code, number, run, errors.read_text()):
            stops += 1
        else:
            unheard += 1
        assert unheard < 40
    assert in_process(train_to_the_end, arguments) == 0
    assert contents(run) == expected
    tell(capsys, f"{number.name}: {stops} stops while stepping, {unheard} before, at most {slowest:.1f} s to leave")


def train_scored_slowly(arguments: list[str], scoring: Path, seconds: float, errors: Path) -> None:
    """``train.py`` whose extractor takes some ``seconds`` for 64 images, and says by a file that it is at work."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    scale_down()
    make = EXTRACTORS["efficientnet-lite0"]

    def slow(weights: Path | None, device: torch.device) -> Extractor:
        extractor = make(weights, device)

        def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
            scoring.touch()
            time.sleep(seconds)
            return extractor.forward(images)

        return replace(extractor, forward=forward)

    EXTRACTORS["efficientnet-lite0"] = slow
    os._exit(cli.run(lambda: PROGRAMS["train"](arguments)))


SEVERAL = [(15,), (2,), (15, 15), (2, 2), (15, 2), (2, 15)]


@pytest.mark.faults
@pytest.mark.parametrize("signals", SEVERAL, ids=str)
def test_a_run_stopped_while_it_scores_or_saves_ends_the_same(signals: tuple[int, ...], tmp_path: Path, tiny: Tiny) -> None:
    arguments = tiny(*BETTER, "training.steps=8", "checkpoint.every=8", "evaluation.every=4")
    run, errors, scoring = tmp_path / "runs" / "tiny", tmp_path / "errors", tmp_path / "scoring"
    expected = calm(arguments, run)
    moments: list[Callable[[], bool]] = [
        lambda: last_step(run) == 4 and scoring.exists(),
        lambda: any((run / "checkpoints").glob("tmp-*")),
    ]
    for moment in moments:
        shutil.rmtree(run)
        scoring.unlink(missing_ok=True)
        slow = (train_scored_slowly, arguments, scoring, 0.5, errors)
        code = in_process(*slow, kill_when=moment, signals=signals)
        said = errors.read_text()
        assert "Traceback" not in said, said
        assert code in {0, *(128 + number for number in signals)}, said
        if signals in ((15,), (2,), (15, 15)) and code:
            check_stopped(code, signals[0], run, said)
        assert in_process(train_to_the_end, arguments) == 0
        assert contents(run) == expected


@pytest.mark.faults
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_run_stopped_while_it_extracts_its_reference_says_one_line(number: signal.Signals, tmp_path: Path, tiny: Tiny) -> None:
    real = pictures(tmp_path / "real", 130)
    arguments = tiny(*BETTER, f"evaluation.reference={real}")
    run, errors, scoring = tmp_path / "runs" / "tiny", tmp_path / "errors", tmp_path / "scoring"
    slow = (train_scored_slowly, arguments, scoring, 1.0, errors)
    empty_cache()
    code = in_process(*slow, kill_when=scoring.exists, signals=(number,))
    assert not check_stopped(code, number, run, errors.read_text())
    assert not run.exists()
    nothing_half()
    assert in_process(train_to_the_end, arguments) == 0


# The programs themselves, from their first moment


def processes_of(group: int) -> list[int]:
    """The processes of a group that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def stopped_at_the_shell(words: list[str], number: int, when: Callable[[int], bool]) -> tuple[int, str, float]:
    """The exit code of a program whose whole group gets a signal, what it said, and how long it took to leave. Nothing of it
    lives on."""
    with subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not when(process.pid):
            time.sleep(0.002)
        began = time.monotonic()
        if process.poll() is None:
            os.killpg(process.pid, number)
        _, said = process.communicate(timeout=30)
        seconds = time.monotonic() - began
    while processes_of(process.pid):
        assert time.monotonic() - began < 30, "a process of it lives on"
        time.sleep(0.1)
    return process.returncode, said, seconds


@pytest.mark.faults
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_run_stopped_while_its_workers_decode_or_stream_leaves_none_of_them(
    number: signal.Signals, tmp_path: Path, tiny: Tiny, capsys: Capsys
) -> None:
    few, many = pictures(tmp_path / "few", 10), tmp_path / "many"
    many.mkdir()
    for index in range(12_000):
        os.link(few / f"{index % 10:03d}.png", many / f"{index:05d}.png")
    data = ["data.name=folder", "data.channels=null", f"data.path={many}", "data.workers=2"]
    run = tmp_path / "runs" / "tiny"

    def at_work(program: int) -> bool:
        return len(processes_of(program)) >= 3

    code, said, seconds = stopped_at_the_shell(["train.py", *tiny(*data)], number, at_work)
    assert not check_stopped(code, number, run, said)
    streamed = ["train.py", *tiny(*data, "data.memory_gb=0", "training.steps=100000")]
    code, said, longer = stopped_at_the_shell(streamed, number, lambda _: last_step(run) > 3)
    assert check_stopped(code, number, run, said)
    tell(capsys, f"{number.name}: left {seconds:.1f} s after it while decoding, {longer:.1f} s while streaming")
