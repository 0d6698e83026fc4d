"""Where generators and data sets meet the protocols: what is scored, against what, and what of it is kept."""

import json
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from eval import comparison_keys, protocols
from eval.extractors import Extractor, load_extractor
from eval.features import Features, ImageSet, Team, cache_folder, digest, extract, forget, hold
from eval.image_sets import DATASETS, QUANTISATION, GeneratedImages, StoredImages, data_of
from eval.protocols import PROTOCOLS, Protocol, Reference, Result
from eval.statistics import GaussianStats, load_stats
from gan.config import GanConfig
from gan.data.datasets import ImageDataset, load_images
from gan.inference.generator import TrainedGenerator
from gan.runs import scores
from gan.runs.scores import Score
from gan.utils.distributed import on_all, on_all_in_turn, on_main
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.safe_reading import MAX_JSON, parse_json, read_file

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "torch-fidelity", "pytorch-fid")


def team_of(accelerator: Accelerator) -> Team:
    """The processes of ``accelerator``, for a shared extraction."""

    def gather(own: NDArray[Any]) -> NDArray[Any]:
        joined: Tensor = accelerator.gather(torch.from_numpy(own).to(accelerator.device))
        return joined.cpu().numpy()

    return Team(
        accelerator.process_index,
        accelerator.num_processes,
        gather,
        lambda function: on_main(accelerator, function),
        lambda function: on_all(accelerator, function),
    )


def load_statistics(path: Path, extractor: Extractor, made_by: str | None, size: Sequence[int] | None = None) -> GaussianStats:
    """Statistics from ``path``. Raises UserError for those of another extractor or, as far as they say, of images of
    another ``size`` (H, W)."""
    moments = load_stats(path, made_by=made_by)
    protocols.check_same_extractor(extractor.identity, moments.provenance.get("extractor", {}), str(path))
    if moments.dimensions != extractor.dimensions:
        raise UserError(
            f"{path}: statistics of {moments.dimensions} features, {extractor.name} has {extractor.dimensions}: made by another"
            " extractor."
        )
    shape = moments.provenance.get("images", {}).get("image")
    if size is not None and shape is not None and list(shape[1:]) != list(size):
        raise UserError(
            f"{path}: statistics of images of {shape[2]}x{shape[1]}, to be compared with images of {size[1]}x{size[0]}: the score"
            f" would measure the scaling too. Make them again with --size {min(size)}."
        )
    return moments


def versions() -> dict[str, str]:
    """Of what a score's digits may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@dataclass(frozen=True)
class Scorer:
    """An extractor and the real images that generators are compared with."""

    extractor: Extractor
    reference: Reference | None  # on the main process alone
    floor_images: Features | None
    reference_name: str  # for people: content is what counts
    team: Team
    device: str
    floors: dict[str, Result | None] = field(default_factory=dict)  # those made so far

    def floor(self, protocol: Protocol) -> Result | None:
        """The protocol's floor, kept beside the reference's features: it costs as much as a score."""
        assert self.reference is not None
        if self.reference.features is None:
            return None
        held_out = self.floor_images
        name = digest([asdict(protocol), held_out.images if held_out else None, versions()])
        images = self.reference.features.images
        folder = cache_folder(images, self.extractor)
        place = folder / f"floor-{name}.json"
        if name not in self.floors:
            with hold(folder):
                try:
                    kept = parse_json(read_file(place, MAX_JSON))
                    if not scores.is_floor(kept):
                        raise ValueError("no floor")
                    self.floors[name] = kept
                except (OSError, ValueError):
                    self.floors[name] = protocols.floor(self.reference, protocol, held_out)
                    with suppress(OSError):  # it is only kept to save time
                        write_atomically(place, json.dumps(self.floors[name]).encode())
        return self.floors[name]

    def score(
        self, features: Features | None, protocol: Protocol, config: GanConfig, step: int, source: str
    ) -> dict[str, Any] | None:
        """The record of one score, on the main process; None on the others."""

        def record() -> dict[str, Any]:
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
                "dtype": "float32 features, float64 scores",
                "device": self.device,
                "versions": versions(),
            }
            result = protocols.score(features, self.reference, protocol, self.floor(protocol), provenance)
            return {"step": step, "source": source, "series": comparison_keys.series(result["provenance"]), **result}

        return self.team.only_main(record)


def make_scorer(
    accelerator: Accelerator,
    extractor: Extractor,
    reference: ImageSet | Reference,
    reference_name: str,
    wanted: Sequence[Protocol],
    floor: ImageSet | None = None,
) -> Scorer:
    """Extracts the real images' features, as far as they are not kept already.

    Raises UserError before that where they are too few for one of the protocols ``wanted``.
    """
    team = team_of(accelerator)
    if not isinstance(reference, Reference):
        for protocol in wanted:
            on_all(accelerator, partial(protocols.check_number, len(reference), protocol))
        features = extract(reference, extractor, team=team)
        opened = Reference(features) if features is not None else None
    else:
        opened = reference
    held_out = extract(floor, extractor, team=team) if floor is not None else None
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Scorer(extractor, opened if team.is_main else None, held_out, reference_name, team, name)


def stored(config: GanConfig, spec: str | None, folder: str | None = None) -> StoredImages:
    """Real images as a run sees them, at its size and in its channels: those of ``spec``, or its own."""
    data = config.data
    if spec is not None:
        own = data.path if spec.partition(":")[0] == data.name else None
        data = data_of(spec, size=data.image_size, channels=data.channels, folder=folder or own)
    elif folder is not None:
        data = replace(data, path=folder)
    return StoredImages(load_images(data))


def name_of(config: GanConfig, spec: str | None) -> str:
    """What a reference is called, without the place where it lies."""
    if spec is None:
        spec = config.data.path if config.data.name == "folder" else f"{config.data.name}:{config.data.split}"
    assert spec is not None
    return spec if spec.partition(":")[0] in DATASETS else Path(spec).name


def reference_of(
    config: GanConfig, spec: str | None, extractor: Extractor, *, made_by: str | None = None, folder: str | None = None
) -> StoredImages | Reference:
    """What a run's generator is compared with: statistics, or real images."""
    if spec is not None and spec.endswith(".npz"):
        side = config.data.image_size
        return Reference(None, load_statistics(Path(spec), extractor, made_by, (side, side)))
    return stored(config, spec, folder)


def score_generator(
    generator: TrainedGenerator, judge: Scorer, wanted: Sequence[Protocol], *, seed: int, batch: int
) -> list[dict[str, Any]]:
    """Scores under each of the protocols, added to the run's scores.jsonl. A score that is there already is not made again.

    Returns the records on the main process. Features of generated images are kept until all scores are written.
    """
    images = GeneratedImages(generator.network, generator.config, generator.weights, seed)
    folder = folder_of(generator)
    team = judge.team

    def done(protocol: Protocol) -> dict[str, Any] | None:
        assert judge.reference is not None
        compared = {
            "protocol": asdict(protocol),
            "extractor": judge.extractor.identity,
            "reference": judge.reference.identity(protocol),
            "floor": judge.floor_images.images if judge.floor_images and judge.reference.features else None,
        }
        for record in scores.read(folder):
            found = record["provenance"]
            same = all(found.get(key) == value for key, value in compared.items())
            if same and record["source"] == "command" and found["generated"] == images.identity:
                return record
        return None

    existing = team.on_main(lambda: {p.name: record for p in wanted if (record := done(p)) is not None})
    missing = [protocol for protocol in wanted if protocol.name not in existing]
    if missing:
        features = extract(images, judge.extractor, count=max(p.total for p in missing), team=team, batch=batch)
        for protocol in missing:
            record = judge.score(features, protocol, generator.config, generator.step, "command")
            if record is not None:
                scores.append(folder, record)
                existing[protocol.name] = record
    # Also where all is written already: a kill may have come between.
    if team.is_main and cache_folder(images.identity, judge.extractor).exists():
        forget(images, judge.extractor)
    return [existing[protocol.name] for protocol in wanted if protocol.name in existing]


def folder_of(generator: TrainedGenerator) -> Path:
    """Where a generator's scores are written: its run's folder, or its own where it is an export."""
    run = generator.folder.parent.parent
    if generator.folder.parent.name == "checkpoints" and (run / "config.yaml").exists():
        return run
    parent = generator.folder.parent
    return parent if generator.folder.name == "best" and (parent / "config.yaml").exists() else generator.folder


class TrainingScorer:
    """Scores a generator while it is trained. Draws nothing from a global random state and changes no network."""

    def __init__(self, config: GanConfig, judge: Scorer) -> None:
        self.config, self.judge = config, judge
        self.protocol = PROTOCOLS[config.evaluation.protocol]

    def score(self, network: nn.Module, step: int, check_stop: Callable[[], None]) -> Score | None:
        """Calls ``check_stop`` between batches, on all processes together: it raises where the run is to stop."""
        weights = "ema" if self.config.training.ema_decay > 0 else "raw"
        images = GeneratedImages(network, self.config, weights, seed=0)
        team = replace(self.judge.team, check=check_stop)
        features = extract(images, self.judge.extractor, count=self.protocol.total, team=team, keep=False, shown=False)
        record = self.judge.score(features, self.protocol, self.config, step, "training")
        if record is None:
            return None
        prefix = f"{self.protocol.name}/{self.judge.extractor.name}"
        found = record["scores"]
        curves = {f"{prefix}/{name}": found[name]["mean"] for name in ("fid", "inception_score", "kid") if found[name]}
        curves |= {f"{prefix}/{name}": found["pooled"][name] for name in ("precision", "recall") if found["pooled"][name]}
        return Score(record, curves, scores.distance_of(record))


def open_training_scorer(config: GanConfig, images: ImageDataset, accelerator: Accelerator) -> TrainingScorer:
    """What ``config.evaluation`` asks for, with the reference's features at hand. Called by all processes together.

    Raises UserError when the extractor's weights or the reference cannot be had.
    """
    settings = config.evaluation
    weights = Path(settings.weights) if settings.weights else None
    extractor = on_all_in_turn(accelerator, partial(load_extractor, settings.extractor, weights, accelerator.device))
    reference = on_all(
        accelerator,
        lambda: StoredImages(images) if settings.reference is None else reference_of(config, settings.reference, extractor),
    )
    name = name_of(config, settings.reference)
    return TrainingScorer(config, make_scorer(accelerator, extractor, reference, name, [PROTOCOLS[settings.protocol]]))
