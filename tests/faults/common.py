"""What the tests of kills, stops and loads share."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.test_resume import STEPS

Tiny = Callable[..., list[str]]
Capsys = pytest.CaptureFixture[str]
# The generator is soon better than at first: best/ is replaced twice.
BETTER = [*STEPS, "model.init_std=0.2", "optimizer.g_lr=0.01"]


def tell(capsys: Capsys, text: str) -> None:
    """Prints a line that is to be seen of a test that passes."""
    with capsys.disabled():
        print(f"\n    {text}", flush=True)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(generator.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"{index:03d}.png")
    return folder


def cached() -> dict[str, bytes]:
    """What the cache holds under its final name."""
    root = Path(os.environ["MSNGAN_CACHE"])
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def empty_cache() -> None:
    shutil.rmtree(os.environ["MSNGAN_CACHE"])
    Path(os.environ["MSNGAN_CACHE"]).mkdir()


def nothing_half() -> None:
    """Whatever the cache holds is whole."""
    root = Path(os.environ["MSNGAN_CACHE"])
    for name in cached():
        if name.endswith(".npz"):
            with np.load(root / name) as part:
                assert all(np.isfinite(part[key]).all() for key in part.files), name
        elif name.endswith(".json"):
            json.loads((root / name).read_text())
