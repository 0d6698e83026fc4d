"""Killed by SIGKILL at any moment: the same command goes on, and ends with the files of the calm run.

Where a moment is aimed at, ``run_and_die`` finds it by counting the program's touches of the disk; others are drawn.
"""

import itertools
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.common import BETTER, Capsys, Tiny, cached, empty_cache, nothing_half, pictures, tell
from tests.study.common import DIGITS, study
from tests.study.common import TINY as TINY_STUDY
from tests.study.common import contents as study_contents
from tests.training.test_resume import calm, contents
from tests.workers import (
    ENDED,
    in_process,
    kill_together,
    run_and_die,
    run_to_the_end,
    run_together,
    train_here,
    train_to_the_end,
)

KILLED = -signal.SIGKILL
# What must have been hit among the touches of the disk, by the words that name them.
AIMS = {
    "a file of a checkpoint": "half of tmp-0",
    "a checkpoint's manifest": "/checkpoint.json",
    "a checkpoint's renaming": "rename checkpoints/tmp-0",
    "the pruning, begun": "rename checkpoints/step-0",
    "the pruning, half way": "unlink /optimizers.pt",
    "the pruning, last": "rmdir checkpoints/tmp-old",
    "a picture": "replace samples/",
    "a score's line": "half a line of tiny/scores.jsonl",
    "a line of metrics": "write tiny/metrics.jsonl",
    "the best generator's files": "half of .best.new",
    "the best generator's, set aside": "rename tiny/best",
    "the best generator's, put in its place": "rename tiny/.best.new",
}


def last_line(path: Path) -> str:
    return path.read_text().splitlines()[-1] if path.exists() and path.stat().st_size else "before the first"


def die_at(name: str, words: list[str], at: int, moments: Path) -> str | None:
    """Where the program was killed at its ``at``-th touch of the disk; None where it ended before."""
    code = in_process(run_and_die, name, words, at, moments)
    assert code in (KILLED, ENDED), f"touch {at}: exit code {code}"
    return last_line(moments) if code == KILLED else None


def deaths(name: str, words: list[str], moments: Path, step: int = 1) -> Iterator[str]:
    """Kills the program at every ``step``-th touch of the disk in turn, until it ends before it is killed."""
    for at in itertools.count(1, step):
        where = die_at(name, words, at, moments)
        if where is None:
            return
        yield f"touch {at}, {where}"


# A run


@pytest.mark.faults
def test_a_run_killed_at_every_touch_of_the_disk_goes_on_bit_for_bit(tmp_path: Path, tiny: Tiny, capsys: Capsys) -> None:
    run, arguments, hit = tmp_path / "runs" / "tiny", tiny(*BETTER), []
    expected = calm(arguments, run)
    shutil.rmtree(run)
    for where in deaths("train", arguments, tmp_path / "moments"):
        hit.append(where)
        assert in_process(train_to_the_end, arguments) == 0, where
        assert contents(run) == expected, where
        shutil.rmtree(run)
    found = {aim: sum(words in where for where in hit) for aim, words in AIMS.items()}
    tell(capsys, f"{len(hit)} kills, at every touch of the disk: " + ", ".join(f"{aim} {count}" for aim, count in found.items()))
    assert all(found.values()), found
    assert len(hit) > 100


CONFIGURATIONS = {
    "SN": ["model.discriminator.norm=spectral"],
    "MSN": ["model.discriminator.norm=mean_spectral"],
    "WGAN-GP": ["loss.name=wgan-gp", "model.discriminator.norm=batch", "training.d_steps=2", "optimizer.beta1=0"],
    "streamed by two workers": ["data.memory_gb=0", "data.workers=2", "data.flip=true"],
}
LONGER = ["training.steps=24", "checkpoint.every=1", "evaluation.every=6"]
KILLS_EACH = 6


@pytest.mark.faults
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_run_killed_at_random_moments_again_and_again_ends_the_same(
    configuration: str, tmp_path: Path, tiny: Tiny, capsys: Capsys
) -> None:
    arguments, run = tiny(*BETTER, *LONGER, *CONFIGURATIONS[configuration]), tmp_path / "runs" / "tiny"
    calm(arguments, run)  # what is cached and compiled at first is done
    shutil.rmtree(run)
    began = time.monotonic()
    expected = calm(arguments, run)
    seconds = time.monotonic() - began
    shutil.rmtree(run)
    moments, kills, starts = random.Random(configuration), 0, 0
    while kills < KILLS_EACH:
        starts += 1
        assert starts < 6 * KILLS_EACH, "it ends before it can be killed"
        if in_process(train_to_the_end, arguments, kill_after=moments.uniform(0.05, 0.8) * seconds) == KILLED:
            kills += 1
        else:  # came to its end: from the beginning
            assert contents(run) == expected
            shutil.rmtree(run)
    assert in_process(train_to_the_end, arguments) == 0
    assert contents(run) == expected
    tell(capsys, f"{kills} kills at random moments, {configuration}")


@pytest.mark.faults
def test_two_processes_killed_together_go_on_bit_for_bit(tmp_path: Path, tiny: Tiny, capsys: Capsys) -> None:
    arguments, run = tiny(*BETTER, "model.discriminator.norm=mean_spectral"), tmp_path / "runs" / "tiny"
    run_together(2, train_here, arguments)
    expected = contents(run)
    moments, kills = random.Random(0), 0
    # Where the main process comes to that touch; and where it does not, after so many seconds.
    aimed = [({}, at) for at in range(3, 150, 18)]
    drawn = [({"after": moments.uniform(0.2, 2.5)}, 10**9) for _ in range(6)]
    for when, at in aimed + drawn:
        shutil.rmtree(run, ignore_errors=True)
        codes = kill_together(2, run_and_die, "train", arguments, at, **when)
        kills += KILLED in codes
        run_together(2, train_here, arguments)
        assert contents(run) == expected, f"killed at touch {at}, {when}"
    tell(capsys, f"{kills} kills of two processes")
    assert kills > 9


# The files of a run that are half way from one state to another, see AIMS.
SECOND_AIMS = [
    "half of tmp-00000004/ema", "rename checkpoints/tmp-00000004", "rename checkpoints/step-00000002", "rename tiny/best",
    "rmdir checkpoints/tmp-old", "rename tiny/.best.new", "half a line of tiny/scores.jsonl", "replace tiny/.environment.json",
]  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("aim", SECOND_AIMS)
def test_a_run_killed_again_while_it_recovers_ends_the_same(aim: str, tmp_path: Path, tiny: Tiny, capsys: Capsys) -> None:
    run, arguments, moments = tmp_path / "runs" / "tiny", tiny(*BETTER), tmp_path / "moments"
    calm(arguments, run)  # what is cached at first is there
    shutil.rmtree(run)
    assert die_at("train", arguments, 10**9, moments) is None
    expected, touches = contents(run), moments.read_text().splitlines()
    shutil.rmtree(run)
    # The last of its kind: there is an older checkpoint, or best/, to go back to.
    at = max(number for number, where in enumerate(touches, 1) if aim in where)
    first = die_at("train", arguments, at, moments)
    assert first is not None
    assert aim in first
    kills = 1
    for second in range(1, 13):  # on what the kill before has left
        if die_at("train", arguments, second, moments) is None:
            assert contents(run) == expected
            shutil.rmtree(run)
            die_at("train", arguments, at, moments)
        kills += 1
    assert in_process(train_to_the_end, arguments) == 0
    assert contents(run) == expected
    tell(capsys, f"{kills} kills: at '{aim}', then at the 1st to 12th touch of the next start")


# Scores


@pytest.mark.faults
def test_a_scoring_that_is_killed_gives_the_same_scores_and_leaves_the_cache_whole(
    finished_run: Path, tmp_path: Path, capsys: Capsys
) -> None:
    real, run = pictures(tmp_path / "real", 200), tmp_path / "run"
    words = ["score", str(run), "--protocol", "quick", "paper", "--extractor", "efficientnet-lite0", "--reference", str(real)]

    def anew() -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished_run, run)
        empty_cache()

    def scored() -> tuple[bytes, dict[str, bytes]]:
        # Parts are kept by the content of their images too; a kill between the two leaves the second one out.
        files = {name: content for name, content in cached().items() if not name.startswith("parts/")}
        return (run / "scores.jsonl").read_bytes(), files

    anew()
    assert in_process(run_to_the_end, "eval", words) == 0
    anew()
    began = time.monotonic()
    assert in_process(run_to_the_end, "eval", words) == 0
    seconds = time.monotonic() - began
    expected = scored()
    assert len(expected[1]) == 6  # the reference in four parts, and a floor of each protocol
    kills = 0

    def go_on(where: str) -> None:
        nothing_half()
        assert in_process(run_to_the_end, "eval", words) == 0
        assert scored() == expected, where
        anew()

    anew()
    for where in deaths("eval", words, tmp_path / "moments"):
        kills += 1
        go_on(where)
    moments = random.Random(0)
    for _ in range(10):
        after = moments.uniform(0.05, 0.9) * seconds
        if in_process(run_to_the_end, "eval", words, kill_after=after) == KILLED:
            kills += 1
            go_on(f"after {after:.2f} s")
        else:
            anew()
    tell(capsys, f"{kills} kills of a scoring: its extraction, its cache, its line")
    assert kills > 30


# A study


@pytest.mark.faults
def test_a_sweep_killed_at_random_gives_the_same_tables(tmp_path: Path, capsys: Capsys) -> None:
    runs = tmp_path / "runs"
    grid = ["--norms", "spectral", "mean_spectral", "--rates", "0.001"]
    # One checkpoint is kept: a run whose sweep is killed stops, saved, at a step where an undisturbed one does not save.
    words = ["sweep", "--config", str(DIGITS), *grid, *TINY_STUDY, "checkpoint.keep=1", f"run.dir={runs}"]

    def outcome() -> tuple[dict[str, object], str]:
        files = {run.name: study_contents(run) for run in sorted(runs.iterdir()) if run.is_dir()}
        capsys.readouterr()
        assert study(*words) == 0  # all is done: it only prints the table
        return files, capsys.readouterr().out

    began = time.monotonic()
    assert in_process(run_to_the_end, "study", words) == 0
    seconds = time.monotonic() - began
    expected = outcome()
    assert "± " in expected[1] or "%" in expected[1]
    shutil.rmtree(runs)
    kills, moments = 0, random.Random(0)
    while kills < KILLS_EACH:  # on what the kill before has left
        if in_process(run_to_the_end, "study", words, kill_after=moments.uniform(0.05, 0.8) * seconds) == KILLED:
            kills += 1
        else:  # came to its end: from the beginning
            assert outcome() == expected
            shutil.rmtree(runs)
    assert in_process(run_to_the_end, "study", words) == 0
    assert outcome() == expected
    tell(capsys, f"{kills} kills of a sweep")


# What other commands write

# Program, words and what they write; {run}, {real} and {out} are filled in.
OUTPUTS: dict[str, tuple[str, list[str], str]] = {
    "single images in a zip": ("gan", ["sample", "{run}", "--single", "--count", "5", "--out", "{out}", "--force"], "images.zip"),
    "single images in a folder": ("gan", ["sample", "{run}", "--single", "--count", "5", "--out", "{out}"], "images"),
    "a grid": ("gan", ["sample", "{run}", "--out", "{out}", "--force"], "grid.png"),
    "an animation": ("gan", ["sample", "{run}", "--animate", "--out", "{out}", "--force"], "training.gif"),
    "an export": ("gan", ["export", "{run}", "--out", "{out}"], "exported"),
    "statistics": ("eval", ["reference", "{real}", "--extractor", "efficientnet-lite0", "--out", "{out}", "--force"], "real.npz"),
    "Table II": ("eval", ["table2", "{run}", "--out", "{out}"], "table2"),
    "the study's tables": ("study", ["tables", "--out", "{out}"], "tables"),
}
NEW_FOLDERS = ("single images in a folder", "an export")  # are there whole or not at all; in others, files are replaced


def files_of(out: Path) -> dict[str, bytes]:
    """The files that ``out`` is or holds, without hidden ones; none where it is not there."""
    paths = [out] if out.is_file() else sorted(out.rglob("*"))
    return {str(p.relative_to(out.parent)): p.read_bytes() for p in paths if p.is_file() and not p.name.startswith(".")}


@pytest.mark.faults
def test_a_killed_command_leaves_the_old_file_or_the_new_one(finished_run: Path, tmp_path: Path, capsys: Capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    score = ["score", str(run), "--protocol", "quick", "--extractor", "efficientnet-lite0"]
    assert in_process(run_to_the_end, "eval", score) == 0
    places = {"run": str(run), "real": str(pictures(tmp_path / "real", 130))}
    kills: dict[str, int] = {}
    for what, (name, template, out_name) in OUTPUTS.items():
        out = tmp_path / out_name
        words = [word.format(**places, out=out) for word in template]
        assert in_process(run_to_the_end, name, words) == 0, what
        new = files_of(out)
        old = {} if what in NEW_FOLDERS else dict.fromkeys(new, b"what was there before")

        def put_old(old: dict[str, bytes] = old, out: Path = out) -> None:
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
            for file, content in old.items():
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).write_bytes(content)

        put_old()
        kills[what] = 0
        for where in deaths(name, words, tmp_path / "moments"):
            kills[what] += 1
            left = files_of(out)
            if what in NEW_FOLDERS:
                assert left in ({}, new), (what, where)
            else:
                assert left.keys() == old.keys(), (what, where)
                assert all(content in (old[file], new[file]) for file, content in left.items()), (what, where)
            done = what in NEW_FOLDERS and left == new  # a new folder that is there already is refused, as it always was
            assert in_process(run_to_the_end, name, words) == (2 if done else 0), (what, where)
            assert files_of(out) == new, (what, where)
            put_old()
    tell(
        capsys, f"{sum(kills.values())} kills of other commands: " + ", ".join(f"{what} {count}" for what, count in kills.items())
    )
    assert min(kills.values()) >= 3


@pytest.mark.slow
def test_single_images_killed_half_way_are_begun_anew_by_the_same_command(finished_run: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "images", tmp_path / "moments"
    words = ["sample", str(finished_run), "--single", "--count", "5", "--out", str(out)]
    for at in (6, 8):  # the second and the fourth image, after the line that names the checkpoint
        where = die_at("gan", words, at, moments)
        assert where is not None
        assert ".images.unfinished/" in where
        assert not out.exists()
    assert in_process(run_to_the_end, "gan", words) == 0
    assert [path.name for path in sorted(out.iterdir())] == [f"{index:06d}.png" for index in range(5)]
    assert not (tmp_path / ".images.unfinished").exists()
