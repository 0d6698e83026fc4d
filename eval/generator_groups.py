"""Which of two groups of trained generators is better: the command ``compare``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.comparison_keys import distance_label, inception_score_label
from eval.differences import LEVEL, Difference, differences, pooled_scores, resampled_scores
from eval.features import Features
from eval.image_sets import GeneratedImages
from eval.measurement import Reference, Result
from eval.protocols import Protocol
from gan.config import GanConfig
from gan.inference.generator import TrainedGenerator, run_of
from gan.runs.folder import recorded_images
from gan.runs.grouping import differing_settings, group_by_seed
from gan.utils.errors import UserError
from gan.utils.progress import progress
from gan.utils.settings import flatten

Named = tuple[Path, TrainedGenerator]  # as given on the command line, and loaded
# Of the data, what makes the images of two runs different ones, beside their files.
_IMAGES = ("data.name", "data.split", "data.image_size", "data.channels")


def check_groups(a: Sequence[Named], b: Sequence[Named]) -> None:
    """Raise UserError unless each group differs only by seed, at one step, and both generate the same kind of images."""
    for option, group in (("A", a), ("--against", b)):
        steps = sorted({generator.step for _, generator in group})
        if len(steps) > 1:
            raise UserError(
                f"{option}: the runs stand at different steps ({', '.join(map(str, steps))}), so their difference is not one of"
                " the seed. Give checkpoints of one step, such as RUN/checkpoints/step-00005000."
            )
        groups = group_by_seed(group, lambda named: _config_until_now(named[1]), lambda named: named[0])
        if len(groups) > 1:
            keys = sorted(differing_settings(groups[0].settings, [groups[1].settings]))
            raise UserError(
                f"{option}: the runs differ by more than the seed ({', '.join(keys)}). Each side is one configuration trained"
                " with several seeds."
            )
    weights = {_checksum(generator) for _, generator in a}
    for path, generator in b:
        if _checksum(generator) in weights:
            raise UserError(f"{path}: is on both sides, weight for weight. Compare two different runs or checkpoints.")
    kinds = {generator.weights: path for path, generator in (*a, *b)}
    if len(kinds) > 1:
        raise UserError(
            f"{kinds['ema']} is an averaged generator and {kinds['raw']} is not, so their scores do not compare."
            " Give --weights raw."
        )
    (first, facts), *others = ((path, _images_of(generator)) for path, generator in (*a, *b))
    for path, other in others:
        if differing := [key for key in facts if key in other and facts[key] != other[key]]:
            raise UserError(
                f"{first} and {path} were trained on different images ({', '.join(differing)}), so their scores do not compare."
            )


def _checksum(generator: TrainedGenerator) -> str:
    found: str = GeneratedImages(generator.network, generator.config, generator.weights, 0).identity["generator_sha256"]
    return found


def run_images(generator: TrainedGenerator) -> str:
    """Return the fingerprint of the images that a generator was trained on; "" for an export and where it is not recorded."""
    run = run_of(generator)
    return "" if run is None else recorded_images(run)


def _images_of(generator: TrainedGenerator) -> dict[str, Any]:
    """Return what makes a generator's training images the same as others: of the files, their fingerprint.

    It is not known of an export, nor where a run's environment.json is missing: then nothing tells them apart.
    """
    settings = dict(flatten(generator.config))
    found = {key: settings[key] for key in _IMAGES}
    fingerprint = run_images(generator)
    return found | ({"files": fingerprint} if fingerprint else {})


def _config_until_now(generator: TrainedGenerator) -> GanConfig:
    """Return the generator's settings; the length of training counts only where the learning rate depends on it."""
    config = generator.config
    if config.optimizer.decay != "none":
        return config
    return replace(config, training=replace(config.training, steps=generator.step))


def compare_groups(
    a: Sequence[Features], b: Sequence[Features], reference: Reference, protocol: Protocol, resamples: int
) -> dict[str, Difference]:
    """Return the difference of each metric between the generators of ``a`` and ``b``, whose samples have these features."""
    values, deviations = [], []
    with progress((len(a) + len(b)) * resamples, "resample") as bar:
        for features in (*a, *b):
            values.append(pooled_scores(features, reference, protocol))
            drawn = []
            for scores in resampled_scores(features, reference, protocol, resamples):
                drawn.append(scores)
                bar.update()
            deviations.append({name: float(np.std([scores[name] for scores in drawn], ddof=1)) for name in values[-1]})
    n = len(a)
    return differences(values[:n], deviations[:n], values[n:], deviations[n:])


def make_comparison(
    a: Sequence[Named],
    b: Sequence[Named],
    found: dict[str, Difference],
    features: Sequence[Features],
    reference: Reference,
    protocol: Protocol,
    resamples: int,
) -> Result:
    """Return the differences with everything needed to repeat them. ``features`` are those of ``a``, then those of ``b``."""
    described = [
        {"run": str(path), "step": generator.step, "seed": generator.config.seed, "generated": own.images}
        for (path, generator), own in zip((*a, *b), features, strict=True)
    ]
    return {
        "differences": {name: value.to_json() for name, value in found.items()},
        "a": described[: len(a)],
        "b": described[len(a) :],
        "provenance": {
            "protocol": protocol.identity(),
            "extractor": features[0].extractor,
            "reference": reference.identity(protocol),
            "level": LEVEL,
            "resamples": resamples,
            "interval": "Welch's t over training seeds; each side's variance is at least that of sampling",
            "sampling_interval": "normal, deviations by bootstrap over the generated images of each generator",
            "scores": "of all generated images together",
        },
    }


def format_groups(found: Result) -> str:
    """Return the differences as lines."""
    made_with, lines = found["provenance"], []
    for side in ("a", "b"):
        runs = found[side]
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        lines.append(f"{side.upper()}: step {runs[0]['step']}, {seeds}: {', '.join(run['run'] for run in runs)}")
    images = made_with["protocol"]["runs"] * made_with["protocol"]["samples"]
    lines.append(f"{images:,} images of each, {made_with['extractor']['extractor']}; 95% intervals")
    labels = {
        "fid": distance_label(made_with["extractor"]),
        "inception_score": inception_score_label(made_with["extractor"]),
        "kid": "KID x 1000",
    }
    for name, value in found["differences"].items():
        scale = 1000 if name == "kid" else 1
        a, b, gap = (f"{value[key] * scale:{sign}.2f}" for key, sign in (("a", ""), ("b", ""), ("difference", "+")))
        over_seeds, over_samples = (
            "unknown" if value[key] is None else "{:+.2f} to {:+.2f}".format(*(scale * end for end in value[key]))
            for key in ("interval", "sampling_interval")
        )
        lines += [
            f"  {labels[name]:<36} A {a}, B {b}, A - B {gap}: {value['verdict']}",
            f"  {'':<36} over seeds {over_seeds}; over samples of these generators alone {over_samples}",
        ]
    return "\n".join(lines)
