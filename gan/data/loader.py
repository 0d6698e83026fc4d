"""Worker processes that decode images, under torch's DataLoader."""

import signal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gan.utils.errors import UserError

_WORKER_GRACE = 40  # seconds between SIGTERM and a worker's end; a run is to save and leave within 30


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """A scheduler's SIGTERM, or Ctrl-C, reaches all processes of a run; the step that it should finish needs the workers.

    They live on for a while only, since multiprocessing ends a worker that was left behind by SIGTERM too, and waits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_WORKER_GRACE))


class _TextOfMistakes(Dataset[Tensor | str]):
    """Images, or what a UserError says of one: as a value, since a DataLoader that passes an exception on wraps it in a
    traceback, and is then held by a cycle and never stops its workers cleanly."""

    def __init__(self, images: Dataset[Tensor]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.images[index]
        except UserError as error:
            return str(error)


def _join(items: list[Tensor | str]) -> Tensor | str:
    mistakes = [item for item in items if isinstance(item, str)]
    return mistakes[0] if mistakes else torch.stack([item for item in items if isinstance(item, Tensor)])
