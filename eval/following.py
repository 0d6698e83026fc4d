"""All generators that a run has kept, in the order of their steps, also while the run is training."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from gan.config import load_config
from gan.inference.generator import WEIGHT_FILES, Weights
from gan.runs import checkpoints
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


def follow_generators(run: Path, accelerator: Accelerator, weights: Weights | None, *, wait: bool) -> Iterator[Path]:
    """Yield the generators that ``run`` has kept, each once, in the order of their steps. All processes call it together.

    With ``wait``, wait for new ones until the run's last step is there. A checkpoint may be removed by the training at any
    time after it was yielded, a milestone never.
    """
    done: set[int] = set()
    announced = False
    while True:
        kept, last = on_main(
            accelerator, lambda: (kept_generators(run, weights), load_config(run / "config.yaml").training.steps)
        )
        if waiting := [step for step in kept if step not in done]:
            done.add(waiting[0])
            yield kept[waiting[0]]
        elif not wait or last in done:
            return
        else:
            if accelerator.is_main_process and not announced:
                log.info(f"{run}: waiting for new checkpoints up to step {last}. Ctrl-C ends this.")
            announced = True
            time.sleep(INTERVAL)
