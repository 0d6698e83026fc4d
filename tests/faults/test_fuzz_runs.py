"""Any damage to a run's folder: a command works as if nothing had been, or says in one line what is wrong and changes nothing."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import eval.__main__ as evaluation
import gan.__main__ as tools
import study.__main__ as studies
import train as program
from tests.conftest import TINY
from tests.faults.damages import Contents, Damage, contents, damages
from tests.faults.test_fuzz import Outcome, called
from tests.small import scale_down
from tests.test_study import DIGITS
from tests.test_study import TINY as TINY_STUDY

FEW = settings(suppress_health_check=list(HealthCheck), max_examples=12)
MANY = settings(FEW, max_examples=400)
SIZES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.faults)]
NEWEST = "checkpoints/step-00000004/"
# What a command may change although it refuses to go on: documented, and nothing of it is lost.
LEFTOVERS = ("tmp-", ".best.", ".config.yaml.")


class World:
    """A finished run, and what each command makes of it."""

    def __init__(self, root: Path, commands: dict[str, Callable[["World"], Outcome]], *made_by: str) -> None:
        self.root, self.commands = root, commands
        self.run, self.out = root / "runs" / "run", root / "out"
        self.images = root / "images"
        draw = np.random.default_rng(0)
        for index in range(12):
            (self.images / str(index % 2)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (32, 32), dtype=np.uint8)).save(self.images / str(index % 2) / f"{index}.png")
        for name in made_by:
            assert commands[name](self).code == 0
        self.whole = contents(self.run)
        self._older: dict[str, Contents] = {}
        shutil.copytree(self.run, root / "whole")
        self.calm = {name: self.tried(name, []) for name in commands}
        assert all(outcome.code == 0 for outcome, *_ in self.calm.values()), self.calm

    def settings(self, *more: str) -> list[str]:
        place = [f"run.dir={self.run.parent}", "run.name=run", "data.name=folder", f"data.path={self.images}"]
        return [*place, *more]

    def fresh(self) -> None:
        """The run as it was, and no results of commands."""
        for folder in (self.run, self.out, self.run.parent / "elsewhere"):
            if folder.is_symlink() or folder.is_file():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
        shutil.copytree(self.root / "whole", self.run)
        self.out.mkdir()

    def tried(self, name: str, damage: list[Damage]) -> tuple[Outcome, Contents, Contents, Contents]:
        """What the command ``name`` ends with, the damaged folder before it and after it, and what it wrote elsewhere."""
        self.fresh()
        for one in damage:
            one.apply(self.run)
        before = contents(self.run)
        outcome = self.commands[name](self)
        return outcome, before, contents(self.run), contents(self.out)

    def older(self, name: str) -> Contents:
        """What the command ``name`` makes of the run without its newest checkpoint."""
        if name not in self._older:
            self._older[name] = self.tried(name, [Damage("remove", NEWEST)])[3]
        return self._older[name]

    def intact(self, before: Contents, *names: str) -> bool:
        """Whether all whose paths begin with one of ``names`` is as it was before the damage."""
        return all(before.get(path) == content for path, content in self.whole.items() if path.startswith(names))


def _gan(world: World, steps: int) -> Outcome:
    more = [f"training.steps={steps}", "checkpoint.every=2", "samples.every=2", "evaluation.every=2"]
    return called(program.main, [*TINY, *world.settings(*more, "evaluation.extractor=efficientnet-lite0")])


def _score(world: World) -> Outcome:
    words = ["--protocol", "quick", "--extractor", "efficientnet-lite0", "--json", "--cpu"]
    return called(evaluation.main, ["score", str(world.run), *words])


def _study(world: World, epochs: int) -> Outcome:
    more = [f"training.epochs={epochs}", "training.batch_size=4", "checkpoint.every=1", "checkpoint.keep=2"]
    return called(studies.main, ["train", "--config", str(DIGITS), *TINY_STUDY, *world.settings(*more)])


GAN: dict[str, Callable[[World], Outcome]] = {
    "train": lambda world: _gan(world, 4),
    "train on": lambda world: _gan(world, 5),
    "sample": lambda world: called(tools.main, ["sample", str(world.run), "--out", str(world.out / "a.png"), "--count", "4"]),
    "animate": lambda world: called(tools.main, ["sample", str(world.run), "--out", str(world.out / "a.gif"), "--animate"]),
    "export": lambda world: called(tools.main, ["export", str(world.run), "--out", str(world.out / "exported")]),
    "score": _score,
    "table2": lambda world: called(evaluation.main, ["table2", str(world.run), "--out", str(world.out)]),
}
STUDY: dict[str, Callable[[World], Outcome]] = {
    "train": lambda world: _study(world, 2),
    "train on": lambda world: _study(world, 3),
    "tables": lambda world: called(studies.main, ["tables", str(world.run), "--out", str(world.out)]),
    "figures": lambda world: called(studies.main, ["figures", str(world.run), "--out", str(world.out)]),
}


@pytest.fixture(scope="module")
def _quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        scale_down(patch)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gans(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> World:
    return World(tmp_path_factory.mktemp("gan"), GAN, "train", "score")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> World:
    return World(tmp_path_factory.mktemp("study"), STUDY, "train")


def lost(before: Contents, after: Contents) -> list[str]:
    """What of a folder was changed by a command that refused, but for damaged checkpoints set aside and half lines."""
    found = {name.replace("checkpoints/damaged-step-", "checkpoints/step-"): content for name, content in after.items()}
    changed = []
    for name, content in before.items():
        name = name.replace("checkpoints/damaged-step-", "checkpoints/step-")
        leftover = any(part.startswith(LEFTOVERS) for part in Path(name).parts)
        whole_lines = name.endswith(".jsonl") and name in found and content.startswith(found[name])
        if found.get(name) != content and not leftover and not whole_lines:
            changed.append(name)
    return changed


def hold_to(world: World, name: str, damage: list[Damage]) -> int:
    """Tries the command ``name`` on a damaged run and checks what it did."""
    outcome, before, after, out = world.tried(name, damage)
    _, _, calm_after, calm_out = world.calm[name]
    assert outcome.code in (0, 2), outcome
    if outcome.code == 2:
        assert len(outcome.errors()) == 1, outcome
        assert not lost(before, after), f"{outcome.err}: lost {lost(before, after)}"
        return 2
    assert not outcome.errors()
    if name.startswith("train"):
        newest = max(path.split("/")[1] for path in calm_after if path.startswith("checkpoints/step-"))
        expected = {path: content for path, content in calm_after.items() if path.startswith(f"checkpoints/{newest}/")}
        assert not [path for path, content in expected.items() if after.get(path) != content], "it ends otherwise"
        return 0
    assert before == after or name == "score", "reading has changed the run"
    if name in ("sample", "export"):
        assert out == calm_out or (out == world.older(name) and not world.intact(before, NEWEST))
    elif name == "score" and world.intact(before, "scores.jsonl"):
        (record,) = (json.loads(line) for line in outcome.out.splitlines())
        weights = world.whole[f"checkpoints/step-{record['step']:08d}/ema.safetensors"]
        assert record["provenance"]["generated"]["generator_sha256"] == hashlib.sha256(weights).hexdigest()
    elif world.intact(before, "scores.jsonl", "config.yaml", "metrics.jsonl", "probes.jsonl", "environment.json", "samples/"):
        assert out == calm_out
    return 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("world", ["gans", "classifiers"])
def test_any_damage_to_a_run_is_repaired_or_told_in_one_line(
    world: str, size: settings, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    finished: World = request.getfixturevalue(world)
    fates: Counter[tuple[str, int]] = Counter()

    def try_it(name: str, damage: list[Damage]) -> None:
        fates[name, hold_to(finished, name, damage)] += 1

    size(given(st.sampled_from(sorted(finished.commands)), damages)(try_it))()
    with capsys.disabled():
        print(f"\n    {world}: " + ", ".join(f"{name} {code}: {count}" for (name, code), count in sorted(fates.items())))
    assert {code for _, code in fates} == {0, 2}


# What fuzzing has found. Of those that must be refused rather than worked around the error's words follow.
FOUND: dict[str, tuple[str, str, Damage]] = {
    "no best generator": ("gans", "train on", Damage("remove", "best")),
    "a file in place of the best generator": ("gans", "train on", Damage("file", "best")),
    "a manifest of the best generator cut off": ("gans", "train", Damage("truncate", "best/checkpoint.json")),
}


@pytest.mark.parametrize("found", FOUND)
def test_a_damage_that_fuzzing_found_is_repaired_or_told_in_one_line(found: str, request: pytest.FixtureRequest) -> None:
    world, name, damage = FOUND[found]
    hold_to(request.getfixturevalue(world), name, [damage])
