"""What tests share: real images where they are, tiny runs, and the command line as a user calls it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the cores; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(processes))))
import torch
from hypothesis import settings

import train as program
from gan.utils import cli

# Torch compiles kernels at the first call, so a time limit on single examples would only measure that.
settings.register_profile("msngan", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("msngan")
torch.use_deterministic_algorithms(True, warn_only=True)

TINY = [
    "model.generator.channels=4", "model.discriminator.channels=4", "model.latent_dim=8", "training.batch_size=8",
    "samples.count=4", "tracking.every=1", "training.precision=fp32", "evaluation.every=0",
    "training.d_batches=separate",
]  # fmt: skip


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real images for tests; a user without them passes all the same."""
    folder = os.environ.get("MSNGAN_DATA")
    if not folder:
        pytest.skip("MSNGAN_DATA is not set: the folder with cifar10-test.zip and mnist-test.zip")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features are kept apart from the user's own; processes that tests start inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSNGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of train.py for a run of a few seconds in ``tmp_path/runs/NAME``."""

    def arguments(*extra: str, name: str = "tiny") -> list[str]:
        return [*TINY, f"run.dir={tmp_path / 'runs'}", f"run.name={name}", *extra]

    return arguments


def command(arguments: list[str]) -> int:
    """The exit code of ``python train.py ARGUMENTS``, run in this process."""
    return cli.run(lambda: program.main(arguments))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with two checkpoints. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    steps = ["training.steps=4", "checkpoint.every=2", "samples.every=2"]
    assert command([*TINY, f"run.dir={folder}", "run.name=run", *steps]) == 0
    return folder / "run"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run in ``tmp_path/run``, which a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def again(run: Path, *settings: str) -> list[str]:
    """Return the arguments of train.py that resume a copied run, with changed settings."""
    return ["--config", str(run / "config.yaml"), f"run.dir={run.parent}", f"run.name={run.name}", *settings]
