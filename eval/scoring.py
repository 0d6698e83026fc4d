"""Scoring of generators, by command and during training: features, scores and the records of scores.jsonl."""

import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from eval import measurement
from eval.comparison_keys import comparison_key
from eval.extractors import Extractor, load_extractor
from eval.feature_cache import FeatureCache, digest
from eval.features import Features, extract
from eval.image_sets import QUANTISATION, ChosenImages, GeneratedImages, StoredImages
from eval.measurement import Reference, Result
from eval.protocols import PROTOCOLS, Protocol
from eval.references import check_statistics_size, open_reference, real_images_for, reference_name
from eval.statistics import GaussianStats
from gan.config import GanConfig
from gan.data.datasets import ImageDataset
from gan.inference.generator import TrainedGenerator, scores_folder
from gan.runs import scores
from gan.runs.scores import Record, Score
from gan.utils.distributed import on_all, on_all_in_turn, on_main, only_on_main
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.safe_reading import MAX_JSON, parse_json, read_file

log = logging.getLogger(__name__)

# Version of what `measurement.floor` returns, for its cache: 1 had a KID deviation of 0 over equal subsets, 2 no density.
FLOOR = 3
# Of the samples that are scored during training: one that nobody gives to --seed by chance.
TRAINING_SEED = 2**31 - 1
TOLD_SECONDS = 10.0  # an extraction of the reference that takes longer is told
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "torch-fidelity", "pytorch-fid")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a score's last digits may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@dataclass(frozen=True)
class Scorer:
    """An extractor, and the real images that generators are compared with."""

    extractor: Extractor
    reference: Reference | None  # only the main process uses it; None on the others where it has features
    held_out: Features | None  # real images for the floor; None: images of the reference
    reference_name: str  # for display; the reference is identified by its content
    accelerator: Accelerator
    device: str
    floors: dict[str, Result | None] = field(default_factory=dict)

    def floor(self, protocol: Protocol) -> Result | None:
        """Return the score of real images, cached beside the reference's features: it costs as much as a score."""
        assert self.reference is not None
        if self.reference.features is None:
            return None
        name = digest([FLOOR, protocol.identity(), self.held_out.images if self.held_out else None, versions()])
        if name not in self.floors:
            cache = FeatureCache(self.reference.features.images, self.extractor)
            path = cache.folder / f"floor-{name}.json"
            with cache.lock():
                try:
                    cached = parse_json(read_file(path, MAX_JSON))
                    if not scores.is_floor(cached):
                        raise ValueError("no floor")
                    self.floors[name] = cached
                except (OSError, ValueError):
                    self.floors[name] = measurement.floor(self.reference, protocol, self.held_out)
                    with suppress(OSError):  # the file only saves time
                        write_atomically(path, json.dumps(self.floors[name]).encode())
        return self.floors[name]

    def score(self, features: Features | None, protocol: Protocol, config: GanConfig, step: int, source: str) -> Record | None:
        """Return a record for scores.jsonl on the main process, None on the others.

        ``features`` are those of the generated images, on the main process; ``source`` is "command" or "training".
        """

        def record() -> Record:
            assert features is not None and self.reference is not None
            data = config.data
            assert data.channels is not None
            provenance = {
                "image": {"shape": [data.channels, data.image_size, data.image_size], "quantisation": QUANTISATION},
                "weights": features.images["weights"],
                "seed": features.images["seed"],
                "step": step,
                "trained_on": f"{data.name}:{data.split}",
                "reference_name": self.reference_name,
                "dtype": f"{self.extractor.dtype} features, float64 scores",
                "device": self.device,
                "versions": versions(),
            }
            result = measurement.make_record(features, self.reference, protocol, self.floor(protocol), provenance, self.held_out)
            return {"step": step, "source": source, "series": comparison_key(result["provenance"]), **result}

        return only_on_main(self.accelerator, record)

    def find_record(self, folder: Path, protocol: Protocol, images: GeneratedImages) -> Record | None:
        """Return the record of an equal score by command in the scores.jsonl of ``folder``, or None."""
        assert self.reference is not None
        expected = {
            "protocol": protocol.identity(),
            "extractor": self.extractor.identity,
            "reference": self.reference.identity(protocol),
            "floor": measurement.held_out_identity(self.reference, self.held_out),
            "generated": images.identity,
        }
        for record in scores.read(folder):
            found = record["provenance"]
            if record["source"] == "command" and all(found.get(key) == value for key, value in expected.items()):
                return record
        return None


def make_scorer(
    accelerator: Accelerator,
    extractor: Extractor,
    config: GanConfig,
    protocols: Sequence[Protocol],
    spec: str | None,
    *,
    images: ImageDataset | None = None,
    floor: str | None = None,
    made_by: str | None = None,
    folder: str | None = None,
    run: Path | None = None,
) -> Scorer:
    """Return the Scorer of runs with ``config``, with the features of the real images extracted or loaded.

    Logs a warning where the real images are too few for a stable distance.

    ``spec`` names the reference (default: the run's own images, which are ``images`` where they are open), ``floor`` other
    real images, ``made_by`` the extractor of a statistics file, ``folder`` the place of a named data set's files, ``run`` the
    run of the generators.

    Raises UserError, before any extraction, where an input cannot be read or has too few images for one of ``protocols``, or
    the run's own images are others by now.
    """
    if spec is None and images is not None:
        opened: StoredImages | Reference = on_all_in_turn(accelerator, lambda: StoredImages(images))
    else:
        opened = on_all(accelerator, lambda: open_reference(config, spec, extractor, made_by=made_by, folder=folder, run=run))
    held_out = None
    if floor is not None:
        if isinstance(opened, Reference):
            raise UserError("--floor: compares real images with those of the reference, and statistics have none. Leave one out.")
        held_out = on_all(accelerator, lambda: real_images_for(config, floor, folder))
        if held_out.identity["content"] == opened.identity["content"]:
            raise UserError(f"--floor {floor}: the images of the reference. Give others, such as the test images.")
        for protocol in protocols:
            on_all(accelerator, partial(measurement.check_held_out_size, len(held_out), protocol))
    if isinstance(opened, Reference):
        reference: Reference | None = opened
        assert isinstance(opened.known, GaussianStats)
        for protocol in protocols:
            check_statistics_size(opened.known, protocol, str(spec))
    else:
        for protocol in protocols:
            on_all(accelerator, partial(measurement.check_reference_size, len(opened), protocol))
        features = _extract_reference(opened, extractor, protocols, accelerator)
        reference = Reference(features) if features is not None else None
    floor_features = extract(held_out, extractor, accelerator=accelerator) if held_out is not None else None
    shown = reference_name(config, spec, folder)
    if accelerator.is_main_process:
        real = opened.known if isinstance(opened, Reference) else opened
        measurement.warn_of_few_images(f"reference {shown}", real, extractor.dimensions)
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Scorer(extractor, reference, floor_features, shown, accelerator, name)


def _extract_reference(
    real: StoredImages, extractor: Extractor, protocols: Sequence[Protocol], accelerator: Accelerator
) -> Features | None:
    """Return the features of the ``real`` images that ``protocols`` need, on the main process. Say how long it took."""
    images: StoredImages | ChosenImages = real
    total, first = len(real), protocols[0]
    if len(protocols) == 1 and first.at_most is not None and first.at_most < total:
        choice = {"count": first.at_most, "seed": first.seed}
        images = ChosenImages(real, measurement.split_images(total, first)[0], choice)
    began = time.monotonic()
    features = extract(images, extractor, accelerator=accelerator, what=f"real images through {extractor.name}")
    took = time.monotonic() - began
    if accelerator.is_main_process and took >= TOLD_SECONDS:
        log.info(
            f"{len(images):,} real images through {extractor.name}: {took:.0f} s. Their features are kept for the next time."
        )
    return features


def score_generator(
    generator: TrainedGenerator, scorer: Scorer, protocols: Sequence[Protocol], *, seed: int, batch: int
) -> list[Record]:
    """Score a generator under each protocol and add the records to its scores.jsonl; return them on the main process.

    An equal score that is there already is returned instead. Features of generated images stay in the cache until all
    scores are written, so that an interrupted command continues.
    """
    images = GeneratedImages(generator.network, generator.config, generator.weights, seed)
    folder, accelerator = scores_folder(generator), scorer.accelerator

    def find_records() -> dict[str, Record]:
        found = {protocol.name: scorer.find_record(folder, protocol, images) for protocol in protocols}
        return {name: record for name, record in found.items() if record is not None}

    records = on_main(accelerator, find_records)
    missing = [protocol for protocol in protocols if protocol.name not in records]
    if missing:
        on_main(accelerator, lambda: scores.require_writable(folder))  # an extraction takes minutes
        count = max(protocol.total for protocol in missing)
        features = extract(images, scorer.extractor, count=count, accelerator=accelerator, batch=batch)
        for protocol in missing:
            record = scorer.score(features, protocol, generator.config, generator.step, "command")
            if record is not None:
                scores.append(folder, record)
                records[protocol.name] = record
    # Also where no score was missing: an earlier command may have been killed before this line.
    cache = FeatureCache(images.identity, scorer.extractor)
    if accelerator.is_main_process and cache.folder.exists():
        cache.remove()
    return [records[protocol.name] for protocol in protocols if protocol.name in records]


class TrainingScorer:
    """Score a generator during training, without using a global random state or changing a network.

    The noise is that of TRAINING_SEED: the best generator is chosen by these scores, so the same noise would flatter it later.
    """

    def __init__(self, config: GanConfig, scorer: Scorer) -> None:
        self.config, self.scorer = config, scorer
        self.protocol = PROTOCOLS[config.evaluation.protocol]

    def score(self, network: nn.Module, step: int, check_stop: Callable[[], None]) -> Score | None:
        """Return the score of ``network`` after ``step`` on the main process, None on the others.

        All processes call it together, and ``check_stop`` between batches: it raises an exception where the run has to stop.
        """
        weights = "ema" if self.config.training.ema_decay > 0 else "raw"
        images = GeneratedImages(network, self.config, weights, seed=TRAINING_SEED)
        features = extract(
            images,
            self.scorer.extractor,
            count=self.protocol.total,
            accelerator=self.scorer.accelerator,
            check_stop=check_stop,
            use_cache=False,
            show_progress=False,
        )
        record = self.scorer.score(features, self.protocol, self.config, step, "training")
        if record is None:
            return None
        prefix = f"{self.protocol.name}/{self.scorer.extractor.name}"
        found = record["scores"]
        known = {name: found[name]["mean"] for name in ("fid", "inception_score", "kid") if found[name] is not None}
        # Of a collapsed generator, precision and recall are 0.0, which is a score like any other.
        by_neighbours = {name: found["pooled"][name] for name in ("precision", "recall", "density", "coverage")}
        known |= {name: value for name, value in by_neighbours.items() if value is not None}
        curves = {f"{prefix}/{name}": value for name, value in known.items()}
        return Score(record, curves, scores.distance_of(record))


def open_training_scorer(config: GanConfig, images: ImageDataset, accelerator: Accelerator) -> TrainingScorer:
    """Return the scorer of ``config.evaluation``, with the reference's features loaded. All processes call it together.

    Raises UserError where the extractor's weights or the reference cannot be read or downloaded.
    """
    settings = config.evaluation
    weights = Path(settings.weights) if settings.weights else None
    extractor = on_all_in_turn(accelerator, partial(load_extractor, settings.extractor, weights, accelerator.device))
    protocols = [PROTOCOLS[settings.protocol]]
    scorer = make_scorer(
        accelerator, extractor, config, protocols, settings.reference, images=images, made_by=settings.reference_made_by
    )
    return TrainingScorer(config, scorer)
