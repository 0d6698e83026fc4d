"""What a GAN's run tells the user: before it starts, and when it is done."""

from pathlib import Path

from accelerate import Accelerator

from gan.config import GanConfig
from gan.data.sources import image_channels
from gan.models.build import build_discriminator, build_generator
from gan.models.dcgan import trainable_parameters
from gan.runs import checkpoints, scores
from gan.runs.folder import prospects, resolve, saved_config
from gan.runs.loggers import last_values
from gan.utils.settings import check_processes, keep_resolved, to_yaml


def summary(config: GanConfig) -> str:
    """Where everything of a finished run is, and what to type next."""
    folder = config.folder
    last = last_values(folder / "metrics.jsonl", "d_loss", "g_loss")
    newest = checkpoints.steps(folder / "checkpoints")
    losses = f" (step {last['step']}: D loss {last['d_loss']:.3f}, G loss {last['g_loss']:.3f})" if last else ""
    return "\n".join(
        [
            f"pictures:    {folder / 'samples'}",
            f"metrics:     {folder / 'metrics.jsonl'}{losses}",
            *_score_lines(folder),
            f"checkpoint:  {newest[-1] if newest else folder / 'checkpoints'}",
            f"next:        python -m gan sample {folder} --out grid.png --count 64 --seed 0",
        ]
    )


def _score_lines(folder: Path) -> list[str]:
    """What training scored last, of how much before; empty where it scored nothing."""
    training = [record for record in scores.read(folder) if record["source"] == "training"]
    if not training:
        return []
    series = [record for record in training if record["series"] == training[-1]["series"]]
    extractor = series[0]["provenance"]["extractor"]["extractor"]
    lines = [
        f"scores:      {folder / scores.FILE} (Frechet distance, {extractor}, {series[0]['protocol']}:"
        f" {scores.distance_of(series[0]):.4g} at step {series[0]['step']},"
        f" {scores.distance_of(series[-1]):.4g} at step {series[-1]['step']})",
    ]
    try:
        return [*lines, f"best:        {folder / 'best'} (step {checkpoints.step_of(folder / 'best')})"]
    except (OSError, ValueError, KeyError, TypeError):  # whoever removed or damaged it did not stop the training
        return [*lines, f"best:        {folder / 'best'} is missing or damaged"]


def describe(config: GanConfig, accelerator: Accelerator) -> str:
    """What ``train`` would do with ``config``: settings, parameter counts, steps, place. Reads little and changes nothing."""
    device, processes = accelerator.device, accelerator.num_processes
    check_processes(config, processes)
    saved = saved_config(GanConfig, config.folder)
    if saved is not None:
        config = keep_resolved(config, saved)
    config = resolve(config, image_channels(config.data), device)
    generator, discriminator = build_generator(config), build_discriminator(config)
    training = config.training
    lines = [to_yaml(config).rstrip(), ""]
    lines.append(f"generator:      {trainable_parameters(generator):,} parameters ({config.model.generator.norm})")
    lines.append(f"discriminator:  {trainable_parameters(discriminator):,} parameters ({config.model.discriminator.norm})")
    lines.append(
        f"steps:          {training.steps:,} G updates, {training.steps * training.d_steps:,} D updates,"
        f" {training.steps * training.d_steps * training.batch_size:,} real images"
    )
    lines.append(
        f"runs on:        {processes} x {device.type} in {training.precision}, {training.batch_size // processes} images each"
    )
    return "\n".join(lines + prospects(config, saved))
