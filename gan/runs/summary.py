"""The text that a training command prints: a dry run's description and a finished run's summary."""

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from gan.config import GanConfig
from gan.data.sources import image_channels
from gan.models.build import build_discriminator, build_generator
from gan.models.dcgan import trainable_parameters
from gan.runs import checkpoints, scores
from gan.runs.folder import resolve, saved_config
from gan.runs.initial_weights import read_initial
from gan.runs.metrics import METRICS, last_values
from gan.utils.command_lines import command_line
from gan.utils.settings import C, check_processes, differences, keep_resolved, to_yaml


def with_saved_settings(config: C, processes: int) -> tuple[C, C | None]:
    """Return ``config`` with the open settings as its run folder has them, and the folder's settings (None: no run yet).

    Raises UserError when ``processes`` do not divide the batch, or the folder is not a run of this kind.
    """
    saved = saved_config(type(config), config.folder)
    config = config if saved is None else keep_resolved(config, saved)
    check_processes(config, processes)
    return config, saved


def description(config: C, saved: C | None, accelerator: Accelerator, facts: Mapping[str, str]) -> str:
    """Return a dry run's text: all settings, ``facts`` by name, devices and the folder that would be written."""
    training, processes = config.training, accelerator.num_processes
    each = f"{training.batch_size // processes} images each"
    facts = {**facts, "runs on": f"{processes} x {accelerator.device.type} in {training.precision}, {each}"}
    return "\n".join([to_yaml(config).rstrip(), "", *_lines(facts, 16), *_prospects(config, saved)])


def _prospects(config: C, saved: C | None) -> list[str]:
    """Return the lines of a dry run about the folder that ``config`` would write to, and the warnings."""
    lines = [f"writes to:      {config.folder.resolve()}"]
    same = saved is None or not differences(config, saved)  # another run is refused, unless it has no step yet
    if same and (found := checkpoints.steps(config.folder / "checkpoints")):
        lines.append(f"resumes from:   {found[-1]}")
    return lines + [f"warning:        {warning}" for warning in config.warnings()]


def summary(folder: Path, facts: Mapping[str, str], next_command: str) -> str:
    """Return a finished run's text: ``facts`` by name, the newest checkpoint and the command to type next."""
    newest = checkpoints.steps(folder / "checkpoints")
    checkpoint = newest[-1] if newest else folder / "checkpoints"
    return "\n".join(_lines({**facts, "checkpoint": str(checkpoint), "next": next_command}, 13))


def _lines(facts: Mapping[str, str], width: int) -> list[str]:
    return [f"{name + ':':<{width}}{text}" for name, text in facts.items()]


def describe_gan(config: GanConfig, accelerator: Accelerator) -> str:
    """Return what training with ``config`` would do. Reads only the list of images and writes nothing."""
    config, saved = with_saved_settings(config, accelerator.num_processes)
    config = resolve(config, image_channels(config.data), accelerator.device)
    generator, discriminator = trainable_parameters(build_generator(config)), trainable_parameters(build_discriminator(config))
    steps, d_updates = config.training.steps, config.training.steps * config.training.d_steps
    facts = {
        "generator": f"{generator:,} parameters ({config.model.generator.describe_norms()})",
        "discriminator": f"{discriminator:,} parameters ({config.model.discriminator.describe_norms()})",
        "steps": f"{steps:,} G updates, {d_updates:,} D updates, {d_updates * config.training.batch_size:,} real images",
    }
    if config.training.initial is not None and not checkpoints.steps(config.folder / "checkpoints"):
        facts["starts with"] = f"weights of {read_initial(config.training.initial).folder}, as far as they fit"
    return description(config, saved, accelerator, facts)


def summarize_gan(config: GanConfig, more: Mapping[str, str]) -> str:
    """Return where everything of a finished run is, its last losses and scores, ``more`` facts, and the command to type next."""
    folder = config.folder
    last = last_values(folder / METRICS, "d_loss", "g_loss")
    losses = f" (step {last['step']}: D loss {last['d_loss']:.3f}, G loss {last['g_loss']:.3f})" if last else ""
    facts = {"pictures": f"{folder / 'samples'}", "metrics": f"{folder / METRICS}{losses}", **_scores(folder), **more}
    return summary(folder, facts, command_line("gan", "sample", folder, "--out", "grid.png", "--count", 64, "--seed", 0))


def _scores(folder: Path) -> dict[str, str]:
    """Return the first and last score of the newest comparable series taken during training; empty without any."""
    training = [record for record in scores.read(folder) if record["source"] == "training"]
    if not training:
        return {}
    comparable = [record for record in training if record["series"] == training[-1]["series"]]
    first, last = comparable[0], comparable[-1]
    extractor = first["provenance"]["extractor"]["extractor"]
    distances = ", ".join(f"{scores.distance_of(record):.4g} at step {record['step']}" for record in (first, last))
    try:
        best = f"{folder / 'best'} (step {checkpoints.step_of(folder / 'best')})"
    except (OSError, ValueError, KeyError, TypeError):  # somebody removed or damaged it while the training went on
        best = f"{folder / 'best'} is missing or damaged"
    return {"scores": f"{folder / scores.FILE} (Frechet distance, {extractor}, {first['protocol']}: {distances})", "best": best}
