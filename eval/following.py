"""All generators that a run has kept, in the order of their steps, also while the run is training."""

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from gan.config import load_config
from gan.inference.generator import WEIGHT_FILES, Weights
from gan.runs import checkpoints
from gan.runs.folder import DIVERGED
from gan.runs.manifest import MANIFEST, step_in_name
from gan.utils.distributed import on_main
from gan.utils.errors import UserError

log = logging.getLogger(__name__)
INTERVAL = 10.0  # seconds between two looks for a new generator


def kept_generators(run: Path, weights: Weights | None = None) -> dict[int, Path]:
    """Return the milestone or else the checkpoint of each step that ``run`` has kept, by step.

    A milestone has one kind of weights. Where that is not the kind asked for, the checkpoint of its step is returned.

    Raises UserError where ``run`` is not a run's folder.
    """
    if not (run / "config.yaml").is_file() or (run / MANIFEST).exists():
        raise UserError(f"{run}: not a run's folder, whose checkpoints --all scores. Leave --all out to score a checkpoint.")
    found = {step_in_name(folder): folder for folder in checkpoints.steps(run / "checkpoints")}
    for folder in checkpoints.steps(run / checkpoints.MILESTONES):
        if weights is None or (folder / f"{WEIGHT_FILES[weights]}.safetensors").exists() or step_in_name(folder) not in found:
            found[step_in_name(folder)] = folder
    return dict(sorted(found.items()))


def follow_generators(
    runs: Sequence[Path], accelerator: Accelerator, weights: Weights | None, *, wait: bool
) -> Iterator[tuple[Path, Path]]:
    """Yield a run and a generator that it has kept, each once, in the order of a run's steps. All processes call it together.

    With ``wait``, wait for new ones until the last step of each run is there, or the run has diverged, and take one of each run
    in turn, since a training removes its older checkpoints. A checkpoint may be removed at any time after it was yielded, a
    milestone never.
    """
    done: dict[Path, set[int]] = {run: set() for run in runs}
    announced: set[Path] = set()
    for together in [list(done)] if wait else [[run] for run in done]:
        while together:
            found = False
            for run in list(together):
                kept, last, diverged = on_main(accelerator, partial(_look_at, run, weights))
                if waiting := [step for step in kept if step not in done[run]]:
                    found = True
                    done[run].add(waiting[0])
                    yield run, kept[waiting[0]]
                elif not wait or last in done[run] or diverged:
                    together.remove(run)
                elif accelerator.is_main_process and run not in announced:
                    log.info(f"{run}: waiting for new checkpoints up to step {last}. Ctrl-C ends this.")
                    announced.add(run)
            if together and not found:
                time.sleep(INTERVAL)


def _look_at(run: Path, weights: Weights | None) -> tuple[dict[int, Path], int, bool]:
    """Return the generators that ``run`` has kept, its last step, and whether it has diverged."""
    diverged = (run / DIVERGED).exists()  # before its checkpoints are listed: the last one may be new
    return kept_generators(run, weights), load_config(run / "config.yaml").training.steps, diverged
