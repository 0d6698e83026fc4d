"""The state of runs as text: the block of one run, the table of a sweep, the grid of a dry run and its cost."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gan.launch.grid import PlannedRun, count_runs
from gan.runs.folder import is_run
from gan.runs.status import RunStatus, read_status
from gan.utils.errors import UserError
from gan.utils.tables import aligned_table


def describe_run(status: RunStatus) -> str:
    """Return one run's progress, rate, losses, scores, health and process, one a line."""
    lines = [f"{status.folder}: {status.state}, {_progress(status)}"]
    rate = f"{status.steps_per_second:.3g} steps a second" if status.steps_per_second else "not known yet"
    losses = ", ".join(f"{name} {value:.3f}" for name, value in status.losses.items())
    facts = {
        "rate": rate + (f", {_duration(status.seconds_left)} left" if not status.complete and status.steps_per_second else ""),
        "losses": losses or "none yet",
        "score": status.score or "none yet",
        "health": "; ".join(status.warnings) or "nothing unusual",
        "held by": status.holder or "nobody",
    }
    return "\n".join(lines + [f"  {name + ':':<9}{text}" for name, text in facts.items()])


def describe_progress(runs: Sequence[PlannedRun[Any]]) -> str:
    """Return the table of a sweep: state, step, time left, last score and health of each run, and how many are in each state."""
    rows, states = [], Counter[str]()
    for run in runs:
        folder = run.config.folder
        state, cells = _cells(folder, getattr(run.config.training, "steps", None))
        states[state] += 1
        rows.append([str(folder), state, *cells])
    table = aligned_table(["run", "state", "step", "left", "score", "health"], rows)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{table}\n\n{count_runs(len(runs))}: {counts}"


def _cells(folder: Path, total: int | None) -> tuple[str, list[str]]:
    """Return the state of the run in ``folder``, and its cells after that."""
    if not is_run(folder):
        return "waiting", ["", "", "", ""]
    try:
        status = read_status(folder, total)
    except UserError as error:
        return "damaged", ["", "", "", str(error)]
    left = "" if status.state in ("done", "diverged") else _duration(status.seconds_left)
    return status.state, [_progress(status), left, status.score, "; ".join(status.warnings)]


def describe_grid(runs: Sequence[PlannedRun[Any]], skip: Callable[[PlannedRun[Any]], str | None]) -> str:
    """Return the runs of a sweep, what each costs, and the cost of those that are left to train."""
    rows: list[list[str]] = []
    steps_left, epochs_left, rates = 0, 0.0, []
    for run in runs:
        folder, training = run.config.folder, run.config.training
        try:
            reason = skip(run)
            status = read_status(folder) if is_run(folder) else None
        except UserError as error:  # training it will tell
            status, reason = None, f"damaged: {error}"
        if status is not None and status.steps_per_second:
            rates.append(status.steps_per_second)
        if hasattr(training, "steps"):
            length = f"{training.steps:,} steps"
            steps_left += 0 if reason else max(0, training.steps - (status.step if status else 0))
        else:
            length = f"{training.epochs:g} epochs"
            epochs_left += 0 if reason else training.epochs
        rows.append([str(folder), length, f"{training.batch_size:,} images", reason or "to train"])
    cost = f"{epochs_left:g} epochs" if epochs_left else f"{steps_left:,} steps"
    if steps_left and rates:
        cost += f", {_duration(steps_left * len(rates) / sum(rates))} one after another at the mean rate recorded so far"
    count = sum(row[-1] == "to train" for row in rows)
    return f"{aligned_table(['run', 'length', 'batch', 'state'], rows)}\n\n{count_runs(len(runs))}, {count} to train: {cost}"


def _progress(status: RunStatus) -> str:
    return f"step {status.step:,}" + (f" of {status.total:,}" if status.total is not None else "")


def _duration(seconds: float | None) -> str:
    if seconds is None or seconds == math.inf:
        return "unknown"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
