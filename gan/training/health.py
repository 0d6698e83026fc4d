"""Whether a training has gone wrong: numbers that are not finite, exploding gradients, a discriminator at chance, a collapsed
generator. What is watched at each step is watched on the device, without waiting for it."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gan.runs.folder import DIVERGED
from gan.utils.errors import TrainingDivergedError
from gan.utils.files import write_atomically

_NEVER = torch.iinfo(torch.int64).max
ADVICE = "Try a lower learning rate (optimizer.*lr), another norm, or training.precision=fp32."


class DivergenceMonitor:
    """Remembers the first step whose metrics were not finite, or whose gradients were too large, and what they were."""

    def __init__(self, device: torch.device, max_grad_norm: float) -> None:
        """``max_grad_norm`` bounds each metric that is called "...grad_norm"; 0 bounds none."""
        self.max_grad_norm = max_grad_norm or math.inf
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._names: list[str] = []
        self._values = self._limits = torch.empty(0, device=device)

    def note(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Called at each step with the same names. Waits for nothing."""
        values = torch.stack(list(metrics.values()))
        if not self._names:
            self._names = list(metrics)
            largest = torch.finfo(values.dtype).max
            limits = [min(self.max_grad_norm, largest) if name.endswith("grad_norm") else largest for name in metrics]
            self._limits = torch.tensor(limits, dtype=values.dtype, device=values.device)
            self._values = values
        new = ~(values.abs() <= self._limits).all() & (self._first == _NEVER)  # NaN is below nothing
        self._first = torch.where(new, self._first.clamp_max(step), self._first)
        self._values = torch.where(new, values, self._values)

    def require(self, accelerator: Accelerator, folder: Path) -> None:
        """Raises TrainingDivergedError on every process if any of them has met such a step; the main one keeps its numbers in
        ``folder``/diverged.json. Waits for the device."""
        firsts = accelerator.gather(self._first.unsqueeze(0)).tolist()
        if min(firsts) == _NEVER:
            return
        process = firsts.index(min(firsts))
        found: list[list[float]] = accelerator.gather(self._values.unsqueeze(0)).tolist()
        values = dict(zip(self._names, found[process], strict=True))
        not_finite = [name for name, value in values.items() if not math.isfinite(value)]
        if not_finite:
            what = f"losses or gradients are not finite since step {firsts[process]} ({', '.join(not_finite)})"
        else:
            norm = max(value for name, value in values.items() if name.endswith("grad_norm"))
            limit = f"health.max_grad_norm={self.max_grad_norm:g}"
            what = f"gradients have exploded at step {firsts[process]} (norm {norm:.3g}, {limit})"
        if accelerator.is_main_process:
            kept = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
            record = {"step": firsts[process], "process": process, "reason": what, "values": kept}
            write_atomically(folder / DIVERGED, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
        raise TrainingDivergedError(f"{what}. Checkpoints are from before that, its numbers are in {folder / DIVERGED}. {ADVICE}")


# D's loss when its scores are all zero, from where on it tells nothing apart: 2 softplus(0), 2 max(0, 1 - 0), 0 - 0. A
# hundredth below is noise.
_GUESSING = {"sngan": 0.99 * 2 * math.log(2), "hinge": 0.99 * 2, "wgan": 0.0, "wgan-gp": 0.0}


def steps_at_chance(loss: str, d_loss: float, step: int, last: Mapping[str, float]) -> int:
    """For how many steps in a row D has done no better under ``loss`` than by guessing, as far as records tell: now with
    ``d_loss`` at ``step``, before as the ``last`` record says (empty: there is none)."""
    if d_loss < _GUESSING[loss]:
        return 0
    return int(last.get("d_chance_steps", 0)) + step - int(last.get("step", 0))


def spread(images: Tensor) -> float:
    """How much images (N, C, H, W) uint8 differ: the standard deviation over them (ddof=0), mean over pixels, in grey levels."""
    return float(images.double().std(0, correction=0).mean())


def relative_spread(samples: Tensor, real: Iterable[Tensor]) -> float:
    """``spread`` of samples over that of as many real images, each (C, H, W); 1 where those are all alike."""
    expected = spread(torch.stack(list(real)))
    return spread(samples) / expected if expected else 1.0
