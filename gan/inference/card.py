"""Model card of an export, in Hugging Face's format: what the generator is, how to use it, its scores and limits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gan.inference.generator import TrainedGenerator
from gan.network_config import NetworkConfig
from gan.runs.scores import Record
from gan.utils.errors import UserError
from gan.utils.safe_reading import printable
from gan.utils.tables import format_mean_std

_TASK = "unconditional-image-generation"
_NAMED_ALIKE = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn")  # data sets that Hugging Face has by the same name


def check_license(name: str | None) -> None:
    """Raise UserError where ``name`` cannot be one of Hugging Face's identifiers of licences."""
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise UserError(f"--license {name!r}: expected an identifier such as mit, apache-2.0, cc-by-4.0 or other.")


def model_card(
    generator: TrainedGenerator, records: list[Record], *, address: str, seed: int, license: str | None, onnx: bool
) -> str:
    """Return the text of README.md. ``address`` is what ``load_generator`` takes; ``records`` are the generator's scores.

    Text that a stranger may have written into a configuration or a score appears as code, where it has no effect.
    """
    data = generator.config.data
    size = f"{data.channels} x {data.image_size} x {data.image_size}"
    return f"""---
{_metadata(generator, records, license)}
---

# {_code(generator.config.run.name)}

![64 samples of seed {seed}, none selected](grid.png)

A generator that makes images ({size}) from noise, trained as a GAN with msngan. The picture shows the first 64 samples of
seed {seed}; none was selected.

## Use

With the Python package msngan, which wrote this file (`pip install .` in a checkout of its repository):

```python
from gan import load_generator

generator = load_generator("{address}")
images = generator.sample(64, seed=0)  # uint8, (64, {data.channels}, {data.image_size}, {data.image_size})
```

The weights are safetensors and hold no code. `config.yaml` holds all settings of the training.
{_onnx_use(generator) if onnx else ""}
## Training

{_training(generator)}

## Scores

{_scores(records)}

## Limits

- The images are like those of the training, in this size only. Neither a class, a text nor a style can be chosen.
- Kinds of images that are rare in the training may be missing, and samples may come close to single training images.
- What is one-sided in the training images is so in the samples.

## Licence

{f"{license}." if license else "None is given yet. The author adds `license: IDENTIFIER` to the first lines of this file."}
The training images have terms of their own.
"""


def _metadata(generator: TrainedGenerator, records: list[Record], license: str | None) -> str:
    """Return the card's first lines, which Hugging Face reads, as YAML."""
    data = generator.config.data
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type=data.name,
            dataset_name=_reference(record),
            metric_type=kind,
            metric_name=f"{metric} ({_extractor(record)}, protocol {printable(record['protocol'])}{_made(record)})",
            metric_value=record["scores"][key]["mean"],
        )
        for record in records
        for key, kind, metric in (
            ("fid", "frechet-distance", "Frechet distance"),
            ("inception_score", "inception-score", "Inception score"),
        )
        if record["scores"].get(key)
    ]
    return ModelCardData(
        license=license,
        library_name="msngan",
        pipeline_tag=_TASK,
        tags=["gan", "dcgan", "image-generation"],
        datasets=[data.name] if data.name in _NAMED_ALIKE else None,
        model_name=printable(generator.config.run.name),
        eval_results=results or None,
    ).to_yaml()


def _onnx_use(generator: TrainedGenerator) -> str:
    data, latent_dim = generator.config.data, generator.config.model.latent_dim
    return f"""
Without msngan, by onnxruntime:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("generator.onnx")
z = np.random.default_rng(0).standard_normal((16, {latent_dim}), dtype=np.float32)  # any number of rows
(images,) = session.run(None, {{"z": z}})  # float32, (16, {data.channels}, {data.image_size}, {data.image_size}), in [-1, 1]
pixels = ((images + 1) * 127.5).round().astype(np.uint8)
```
"""


def _training(generator: TrainedGenerator) -> str:
    config = generator.config
    data, training, optimizer = config.data, config.training, config.optimizer
    images = f"`{data.name}:{data.split}`" if data.name != "folder" else "a folder of the author's"
    average = f"averaged over training (decay {training.ema_decay:g})"
    parameters = sum(p.numel() for p in generator.network.parameters())
    return f"""| | |
|---|---|
| images | {images}, {data.channels} x {data.image_size} x {data.image_size} |
| steps | {generator.step:,} generator updates, each with {training.d_steps} of the discriminator |
| batch | {training.batch_size} images |
| weights | {average if generator.weights == "ema" else "as trained"} |
| generator | DCGAN, {_network(config.model.generator)}, {parameters:,} parameters |
| noise | z ~ N(0, I), {config.model.latent_dim} numbers |
| discriminator | {_network(config.model.discriminator)} |
| loss | {config.loss.name} |
| optimizer | {optimizer.name}, learning rates {optimizer.g_lr:g} (generator) and {optimizer.d_lr:g} (discriminator) |
| seed | {config.seed} |"""


def _network(network: NetworkConfig) -> str:
    return f"{network.channels} channels, norm {network.describe_norms()}"


def _scores(records: list[Record]) -> str:
    if not records:
        return "None is recorded for these weights. `python -m eval score` of msngan makes one."
    rows = "\n".join(f"| {' | '.join(cells)} |" for record in records for cells in _rows(record))
    return f"""| | generator | real images | protocol | extractor | against |
|---|---|---|---|---|---|
{rows}

"Real images" is the floor: the score of real images under the same protocol. ± is the standard deviation over runs of this one
generator, not over trainings. Only scores of one protocol, extractor and reference compare with each other. A score that was
made while training may have chosen these weights, which flatters it."""


def _rows(record: Record) -> Iterator[list[str]]:
    """Yield the cells of each metric of a record that ``gan.runs.scores`` has read."""
    found, floor = record["scores"], record["floor"] or {}
    protocol = record["provenance"].get("protocol")
    sizes = f", {protocol['runs']} x {protocol['samples']} images" if _has_sizes(protocol) else ""
    common = [_code(record["protocol"]) + sizes + _made(record), _code(_extractor(record)), _code(_reference(record))]
    for key, label, scale in (
        ("fid", "Frechet distance", 1),
        ("inception_score", "Inception score", 1),
        ("kid", "KID x 1000", 1000),
    ):
        if found.get(key):
            yield [label, format_mean_std(found[key], scale=scale), format_mean_std(floor.get(key), scale=scale), *common]
    for key in ("precision", "recall", "density", "coverage"):
        if found["pooled"].get(key) is not None:
            real = floor.get("pooled", {}).get(key)
            yield [key.capitalize(), f"{found['pooled'][key]:.3f}", "-" if real is None else f"{real:.3f}", *common]


def _made(record: Record) -> str:
    return ", while training" if record["source"] == "training" else ""


def _has_sizes(protocol: Any) -> bool:
    return isinstance(protocol, dict) and all(isinstance(protocol.get(key), int) for key in ("runs", "samples"))


def _extractor(record: Record) -> str:
    """Return the extractor's name and the first digits of its weights' checksum, by which published weights are known."""
    extractor = record["provenance"]["extractor"]
    checksum = extractor.get("weights_sha256")
    return printable(f"{extractor['extractor']}{f', weights {checksum[:8]}' if isinstance(checksum, str) else ''}")


def _reference(record: Record) -> str:
    """Return the reference's name, without the folder of its file."""
    return printable(Path(str(record["provenance"].get("reference_name", "unknown"))).name)


def _code(text: str) -> str:
    """Return ``text`` as a code span of one line; ` and |, which could end it, are replaced."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', '/') or ' '}`"
