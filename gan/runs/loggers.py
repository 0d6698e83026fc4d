"""A run's records: metrics.jsonl and probes.jsonl always; TensorBoard and wandb where they are enabled."""

import errno
import json
import mmap
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gan.runs.wandb_run import Mode, WandbRun, library
from gan.utils.errors import UserError
from gan.utils.safe_reading import is_number, open_regular, parse_json

METRICS, PROBES = "metrics.jsonl", "probes.jsonl"


def check_trackers(*, wandb: Mode, tensorboard: bool) -> None:
    """Raise UserError when an enabled logger is not installed or has no key."""
    if tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "tracking.tensorboard=true: TensorBoard is not installed. pip install 'msngan[tensorboard]', or set it to false."
        )
    if wandb != "off" and find_spec("wandb") is None:
        raise UserError(f"tracking.wandb={wandb}: wandb is not installed. pip install wandb, or set tracking.wandb=off.")
    if wandb == "online" and not library().login(prompt=False, verify=False):
        raise UserError("tracking.wandb=online: no key for wandb. Run 'wandb login', or set tracking.wandb=offline.")


def truncate_metrics(path: Path, step: int, *, evaluated: bool = True) -> None:
    """Remove the lines of ``path`` after ``step``, and an incomplete last line, since they will be written again.

    Where ``step`` has not been ``evaluated``, its lines of an evaluation are removed too: those without "seconds".
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                later = record["step"] > step or (record["step"] == step and not evaluated and "seconds" not in record)
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            if not line.endswith(b"\n") or later:
                break
            end += len(line)
    with path.open("r+b") as file:
        file.truncate(end)


def last_values(path: Path, *keys: str) -> dict[str, Any]:
    """Return the last line of a metrics file that has the first of ``keys``; empty where there is none.

    The file is read from its end, one line at a time, since that of a long run may be larger than the memory.

    Raises UserError for what is no file, a damaged line on the way, or one whose step and ``keys`` are not finite numbers.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    try:
        source = open_regular(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    with source as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1  # an incomplete line follows where the run was killed
        while end > 0:
            start = content.rfind(b"\n", 0, end - 1) + 1
            try:
                values = parse_json(content[start:end])
            except ValueError:
                values = None
            wanted = isinstance(values, dict) and keys[0] in values
            if not isinstance(values, dict) or (wanted and not all(is_number(values.get(key)) for key in ("step", *keys))):
                raise UserError(f"{path}: a line is damaged. Restore the file from a copy, or remove the line.")
            if wanted:
                return values
            end = start
    return {}


class JsonLines:
    """A JSON Lines file; each object has "step". A kill never leaves half a line."""

    def __init__(self, path: Path, step: int, *, evaluated: bool = True) -> None:
        """Open ``path`` to append after ``step``; see ``truncate_metrics``."""
        truncate_metrics(path, step, evaluated=evaluated)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one object, whose numbers are finite."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        # One write of less than a page, so that a kill leaves the whole line or none.
        written = os.write(self._file, line)
        if written < len(line):  # the disk is full
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Tracker:
    """Writes the records of one run, on the main process only."""

    def __init__(
        self, folder: Path, step: int, *, settings: Mapping[str, Any], wandb: Mode, project: str, tensorboard: bool,
        evaluated: bool = True,
    ) -> None:  # fmt: skip
        """Append to the records in ``folder`` after ``step``, see ``truncate_metrics``. wandb shows ``settings``."""
        self.folder = folder
        self._metrics = JsonLines(folder / METRICS, step, evaluated=evaluated)
        truncate_metrics(folder / PROBES, step)
        self._probes: JsonLines | None = None
        self._wandb: WandbRun | None = None
        self._tensorboard: Any = None
        if wandb != "off":
            self._wandb = WandbRun(folder, wandb, project=project, config=dict(settings))
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record of finite ``values``."""
        self._metrics.append({"step": step, **values})
        if self._wandb is not None:
            self._wandb.log(step, values)
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)

    def probe(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of probes.jsonl, for data too large for curves."""
        if self._probes is None:
            self._probes = JsonLines(self.folder / PROBES, step - 1)
        self._probes.append({"step": step, **values})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Send an image (H, W) or (H, W, 3) to wandb and TensorBoard. The caller writes the PNG."""
        if self._wandb is not None:
            self._wandb.log(step, {name: library().Image(Image.fromarray(pixels))})
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def message(self, step: int, text: str) -> None:
        """Send a warning or error text to wandb and TensorBoard."""
        if self._wandb is not None:
            self._wandb.log(step, {"message": text})
        if self._tensorboard is not None:
            self._tensorboard.add_text("message", text, step)

    def flush(self) -> None:
        """Sync all lines to the disk: a checkpoint must not be newer than the records that lead to it."""
        self._metrics.flush()
        if self._probes is not None:
            self._probes.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if self._probes is not None:
            self._probes.close()
        if self._wandb is not None:
            self._wandb.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
