"""Finished runs for fuzzing, and what each command makes of them."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import eval.__main__ as evaluation
import gan.__main__ as tools
import study.__main__ as studies
import train as program
from gan.utils import cli
from tests.conftest import TINY
from tests.faults.damages import Contents, Damage, contents
from tests.study.common import DIGITS
from tests.study.common import TINY as TINY_STUDY

NEWEST = "checkpoints/step-00000004/"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    def errors(self) -> list[str]:
        return [line for line in self.err.split("\n") if line.startswith("error: ")]


def called(main: Callable[[list[str]], int], words: list[str]) -> Outcome:
    """What a command ends with and says. Whatever is not told in one line comes out as an exception: that is a defect."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.run(lambda: main(words))
    return Outcome(code, out.getvalue(), err.getvalue())


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
        self._calm: dict[str, tuple[Contents, Contents]] = {}
        shutil.copytree(self.run, root / "whole")

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

    def calm(self, name: str) -> tuple[Contents, Contents]:
        """The undamaged run after the command ``name``, and what it wrote elsewhere."""
        if name not in self._calm:
            outcome, _, *left = self.tried(name, [])
            assert outcome.code == 0, outcome
            self._calm[name] = (left[0], left[1])
        return self._calm[name]

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


def _page(world: World) -> Outcome:
    return called(tools.main, ["page", str(world.run), "--out", str(world.out / "page.html"), "--force"])


GAN: dict[str, Callable[[World], Outcome]] = {
    "train": lambda world: _gan(world, 4),
    "train on": lambda world: _gan(world, 5),
    "sample": lambda world: called(tools.main, ["sample", str(world.run), "--out", str(world.out / "a.png"), "--count", "4"]),
    "animate": lambda world: called(tools.main, ["sample", str(world.run), "--out", str(world.out / "a.gif"), "--animate"]),
    "export": lambda world: called(tools.main, ["export", str(world.run), "--out", str(world.out / "exported")]),
    "score": _score,
    "status": lambda world: called(tools.main, ["status", str(world.run)]),
    "page": _page,
    "table2": lambda world: called(evaluation.main, ["table2", str(world.run), "--out", str(world.out)]),
}
STUDY: dict[str, Callable[[World], Outcome]] = {
    "train": lambda world: _study(world, 2),
    "train on": lambda world: _study(world, 3),
    "status": lambda world: called(tools.main, ["status", str(world.run)]),
    "page": _page,
    "tables": lambda world: called(studies.main, ["tables", str(world.run), "--out", str(world.out)]),
    "figures": lambda world: called(studies.main, ["figures", str(world.run), "--out", str(world.out)]),
}
