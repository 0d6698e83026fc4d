"""The grid of classifiers that a sweep trains, and which of its runs are complete; ``gan.launch`` trains them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gan.launch.grid import PlannedRun, Values, plan
from gan.runs.folder import is_run
from gan.runs.manifest import folder_of
from gan.utils.errors import UserError
from gan.utils.settings import differences, keep_resolved
from study.config import StudyConfig, load_study_config
from study.results import ClassifierRun, read_run, without_doubles

PROGRAM = ["-m", "study", "train"]
SWEPT = ("model.norm", "optimizer.lr", "seed", "run.name")


def plan_classifiers(
    paths: Sequence[Path], norms: Sequence[str], rates: Sequence[float], seeds: Sequence[int], overrides: Sequence[str]
) -> list[PlannedRun[StudyConfig]]:
    """Return the runs of every combination.

    Raises UserError as ``plan``, and for an override of a key that the sweep sets.
    """
    for override in overrides:
        if override.partition("=")[0] in SWEPT:
            raise UserError(f"{override}: a sweep sets {', '.join(SWEPT)} itself. Use --norms, --rates, --seeds or run.dir.")
    values = {"model.norm": norms, "optimizer.lr": [repr(rate) for rate in rates]}
    return plan(paths, values, seeds, load_study_config, _name, overrides)


def _name(path: Path, values: Values, seed: int | None) -> str:
    return f"{path.stem}_{values['model.norm']}_lr{float(values['optimizer.lr']):g}_seed{seed}"


def readable(folders: Sequence[Path]) -> list[ClassifierRun]:
    """Return the runs in ``folders`` that can be read, each training once. The sweep has reported the damaged ones."""
    found = []
    for folder in folders:
        with suppress(UserError):
            run = read_run(folder)
            _ = (run.tests, run.failure, run.images)
            found.append(run)
    return without_doubles(found)


def reason_to_skip(config: StudyConfig, retry: bool) -> str | None:
    """Return why the run of ``config`` is skipped. None: it is trained, or training refuses the contents of its folder."""
    if not is_run(config.folder):
        return None
    run = read_run(config.folder)
    if differences(keep_resolved(config, run.config), run.config):
        return None
    if not retry and (error := run.failure) is not None:
        return f"failed before: {error}"
    if run.failure is not None or not run.complete or run.config.training.epochs < config.training.epochs:
        return None
    # A run that was killed between its last test and its last checkpoint has no trained weights yet.
    return "done" if folder_of(config.folder / "checkpoints", run.tests[-1]["step"]).is_dir() else None
