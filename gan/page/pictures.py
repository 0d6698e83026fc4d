"""Grids of samples as the page holds them: at common steps, small, each once."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from gan.data.decoding import decode_file
from gan.utils.progress import follow

MAX_SIDE = 600  # pixels of a picture; larger ones are scaled down
QUALITY = 80  # of JPEG, without subsampling of colours, which would blur images of 32 pixels


@dataclass(frozen=True)
class Picture:
    """A picture as JPEG."""

    step: int
    content: bytes
    width: int  # pixels
    height: int


def choose_steps(runs: Sequence[dict[int, Path]], most: int) -> list[int]:
    """Return at most ``most`` of the steps at which any of ``runs`` has a picture: the first, the last, evenly spaced ones."""
    steps = sorted({step for run in runs for step in run})
    if len(steps) <= most:
        return steps
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def read_pictures(run: dict[int, Path], steps: Sequence[int]) -> list[Picture]:
    """Return the pictures of a ``run`` that are shown at ``steps``: at each the newest that it had by then.

    Raises UserError for one that cannot be read.
    """
    shown = sorted({max(own) for step in steps if (own := [at for at in run if at <= step])})
    return [read_picture(run[step], step) for step in follow(iter(shown), len(shown), "reading grids")]


def read_picture(path: Path, step: int = 0) -> Picture:
    """Return the picture at ``path``, scaled down where a side has more than MAX_SIDE pixels.

    Raises UserError as ``decode_file``.
    """
    image = decode_file(path)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, subsampling=0)
    return Picture(step, buffer.getvalue(), image.width, image.height)
