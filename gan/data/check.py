"""Check images before they are needed: decode them once, and name all that cannot be."""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from gan.data.sources import Source, open_source
from gan.data.worker_pool import compute_batches
from gan.utils.devices import cores
from gan.utils.errors import UserError
from gan.utils.progress import follow
from gan.utils.safe_reading import printable
from gan.utils.settings import DataConfig

log = logging.getLogger(__name__)

_BATCH = 64  # images between two looks at the clock
Found = tuple[str, int, int] | str  # mode, width and height of an image, or why it cannot be read
Show = Callable[[Iterator[int], int, str], Iterable[int]]


@dataclass
class Report:
    """What a check has found among the first ``checked`` of the images that it was given."""

    checked: int = 0
    mistakes: list[str] = field(default_factory=list)  # messages, each with the name of its file
    modes: Counter[str] = field(default_factory=Counter)  # "L" is grey, "RGB" colour
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # width, height


class _Decode:
    """Decode one image of a source by its index."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, index: int) -> Found:
        try:
            image = self.source.read(index)
        except UserError as error:
            return str(error)
        return image.mode, image.width, image.height


def check_images(source: Source, indices: Sequence[int], show: Show, *, workers: int, seconds: float = float("inf")) -> Report:
    """Decode the images at ``indices`` in ``workers`` processes, for at most about ``seconds``.

    ``show(numbers, total, title)`` yields the numbers and shows the progress.
    """
    report, deadline = Report(), time.monotonic() + seconds
    slices = (list(indices[start : start + _BATCH]) for start in range(0, len(indices), _BATCH))
    with closing(compute_batches(_Decode(source), slices, workers, lambda: time.monotonic() > deadline)) as batches:
        values: list[Found] = []
        for number in show(iter(range(len(indices))), len(indices), "checking images"):
            if number % _BATCH == 0:
                if time.monotonic() > deadline:
                    break
                values = next(batches, [])
            if not values:
                break
            _count(report, values[number % _BATCH])
    return report


def _count(report: Report, found: Found) -> None:
    report.checked += 1
    if isinstance(found, str):
        report.mistakes.append(found)
    else:
        mode, *size = found
        report.modes[mode] += 1
        report.sizes[size[0], size[1]] += 1


def check(options: argparse.Namespace) -> None:
    """Print what a folder or zip of images holds. Raises UserError after the list of those that cannot be read."""
    workers = cores() if options.workers is None else options.workers
    source = open_source(DataConfig(name="folder", path=str(options.path)))
    report = check_images(source, range(len(source)), follow, workers=workers)
    for line in _description(source, report):
        print(printable(line))
    if report.mistakes:
        raise UserError(
            f"{options.path}: {len(report.mistakes):,} of {len(source):,} images cannot be read (listed above)."
            " Repair or remove them."
        )


def _description(source: Source, report: Report) -> Iterator[str]:
    yield f"images:   {len(source):,} ({report.modes['RGB']:,} in colour, {report.modes['L']:,} grey)"
    if report.sizes:
        sizes = sorted(report.sizes, key=lambda size: (min(size), max(size)))
        (width, height), (last_width, last_height) = sizes[0], sizes[-1]
        largest = f" to {last_width}x{last_height}" if len(sizes) > 1 else ""
        yield f"sizes:    {width}x{height}{largest}, width x height, by the shorter side"
    try:
        labels = source.labels()
        counts = Counter(labels.class_indices.tolist())
        yield f"classes:  {len(labels.classes):,}: " + ", ".join(f"{name} {counts[i]:,}" for i, name in enumerate(labels.classes))
    except UserError:
        yield "classes:  none"
    for remark in source.remarks:
        yield f"note:     {remark}"
    for mistake in report.mistakes:
        yield f"damaged:  {mistake}"
