"""Real images and statistics that a run's generator is compared with, as named on the command line."""

import logging
from dataclasses import replace
from pathlib import Path

from eval.extractors import Extractor
from eval.image_sets import DATASETS, StoredImages, parse_spec
from eval.measurement import Reference, check_same_extractor
from eval.protocols import Protocol
from eval.statistics import GaussianStats, load_stats
from gan.config import GanConfig
from gan.data.datasets import load_images
from gan.runs.folder import require_trained_on
from gan.utils.errors import UserError

log = logging.getLogger(__name__)


def check_stats(stats: GaussianStats, extractor: Extractor, path: str) -> None:
    """Raise UserError where the statistics from ``path`` were made by another extractor."""
    check_same_extractor(extractor.identity, stats.extractor, path)
    if stats.dimensions != extractor.dimensions:
        raise UserError(
            f"{path}: statistics of {stats.dimensions} features, {extractor.name} has {extractor.dimensions}."
            " Make them again with this extractor."
        )


def check_statistics_size(stats: GaussianStats, protocol: Protocol, path: str) -> None:
    """Raise UserError where ``protocol`` compares with another number of real images than the statistics from ``path`` have.

    Log a warning where the file does not say their number.
    """
    if protocol.reference is None or stats.count == protocol.reference:
        return
    if stats.count is not None:
        raise UserError(
            f"{path}: statistics of {stats.count:,} images, and protocol {protocol.name} compares with {protocol.reference:,}."
            " Give statistics of as many, or the images themselves."
        )
    log.warning(f"{path}: does not say of how many images; protocol {protocol.name} compares with {protocol.reference:,}.")


def real_images_for(config: GanConfig, spec: str | None, folder: str | None = None, *, run: Path | None = None) -> StoredImages:
    """Return the images of ``spec`` (default: the run's own) at the run's size and number of channels.

    ``folder`` is the place of a named data set's files, by default the run's. Raises UserError where the own images of ``run``
    are others by now.
    """
    data = config.data
    if spec is not None:
        own = data.path if spec.partition(":")[0] == data.name else None
        data = parse_spec(spec, size=data.image_size, channels=data.channels, folder=folder or own)
    elif folder is not None:
        data = replace(data, path=folder)
    images = load_images(data)
    if spec is None and run is not None:
        require_trained_on(images, run)
    return StoredImages(images)


def reference_name(config: GanConfig, spec: str | None, folder: str | None = None) -> str:
    """Return the name of a reference for display, without the path of its folder."""
    if spec is None:
        spec = folder or config.data.path if config.data.name == "folder" else f"{config.data.name}:{config.data.split}"
    assert spec is not None
    return spec if spec.partition(":")[0] in DATASETS else Path(spec).name


def open_reference(
    config: GanConfig,
    spec: str | None,
    extractor: Extractor,
    *,
    made_by: str | None = None,
    folder: str | None = None,
    run: Path | None = None,
) -> StoredImages | Reference:
    """Return the statistics or real images of ``spec`` (default: the run's own images) for the generator of ``run``.

    Raises UserError for statistics of another extractor or, as far as the file says, of images of another size.
    """
    if spec is None or not spec.lower().endswith(".npz"):
        return real_images_for(config, spec, folder, run=run)
    stats = load_stats(Path(spec), made_by=made_by)
    check_stats(stats, extractor, spec)
    side = config.data.image_size
    if stats.image_shape is not None and stats.image_shape[1:] != [side, side]:
        _, height, width = stats.image_shape
        raise UserError(
            f"{spec}: statistics of images of {width}x{height}, to be compared with images of {side}x{side}: the score would"
            f" measure the scaling too. Make them again with --size {side}."
        )
    return Reference(stats)
