"""Signs of a failed training: numbers that are not finite, exploding gradients, D at chance, a collapsed generator."""

import json
import math
from collections.abc import Mapping
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
    """Keeps the first step whose metrics were not finite or whose gradients were too large, on the device, and its metrics."""

    def __init__(self, device: torch.device, max_grad_norm: float) -> None:
        """``max_grad_norm`` is the upper bound of each metric whose name ends in grad_norm; 0 means no bound."""
        self.max_grad_norm = max_grad_norm or math.inf
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._names: list[str] = []
        self._values = self._limits = torch.empty(0, device=device)

    def note(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Check the metrics of ``step``, under the same names at each step. Does not wait for the device."""
        values = torch.stack(list(metrics.values()))
        if not self._names:
            self._names = list(metrics)
            largest = torch.finfo(values.dtype).max
            limits = [min(self.max_grad_norm, largest) if name.endswith("grad_norm") else largest for name in metrics]
            self._limits = torch.tensor(limits, dtype=values.dtype, device=values.device)
            self._values = values
        new = ~(values.abs() <= self._limits).all() & (self._first == _NEVER)  # NaN fails any comparison
        self._first = torch.where(new, self._first.clamp_max(step), self._first)
        self._values = torch.where(new, values, self._values)

    def require(self, accelerator: Accelerator, folder: Path) -> None:
        """Raise TrainingDivergedError on every process if any of them has noted such a step. Waits for the device.

        The main process writes the step's metrics to ``folder``/diverged.json.
        """
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
        raise TrainingDivergedError(f"{what}. Checkpoints are from before that; the numbers are in {folder / DIVERGED}. {ADVICE}")


# D's loss where its logits are all zero, so that it cannot tell real from fake: 2 softplus(0), 2 max(0, 1 - 0), 0 - 0. The
# first two are lowered by 1%, which is noise.
CHANCE_LOSS = {"sngan": 0.99 * 2 * math.log(2), "hinge": 0.99 * 2, "wgan": 0.0, "wgan-gp": 0.0}


def steps_at_chance(loss: str, d_loss: float, step: int, last: Mapping[str, float]) -> int:
    """Return the number of consecutive steps with D at chance under ``loss``: its loss no lower than that of zero logits.

    ``d_loss`` is that of ``step``; the count continues that of the ``last`` record (empty: there is none).
    """
    if d_loss < CHANCE_LOSS[loss]:
        return 0
    return int(last.get("d_chance_steps", 0)) + step - int(last.get("step", 0))


def spread(images: Tensor) -> float:
    """Return the standard deviation over images (N, C, H, W) uint8 (ddof=0), averaged over pixels, in grey levels."""
    return float(images.double().std(0, correction=0).mean())


def relative_spread(samples: Tensor, real: float) -> float:
    """Return the ``spread`` of samples over ``real``, that of real images; 1 where all real ones are equal."""
    return spread(samples) / real if real else 1.0
