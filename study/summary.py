"""The text that ``python -m study train`` prints: a dry run's description and a finished run's summary."""

from accelerate import Accelerator

from gan.models.dcgan import trainable_parameters
from gan.runs.folder import resolve
from gan.runs.metrics import METRICS, PROBES, last_values
from gan.runs.summary import description, summary, with_saved_settings
from gan.utils.command_lines import command_line
from study.classifier_task import build, total_steps
from study.config import StudyConfig
from study.data import training_images


def describe_classifier(config: StudyConfig, accelerator: Accelerator) -> str:
    """Return what training with ``config`` would do. Reads only the list of images and writes nothing."""
    config, saved = with_saved_settings(config, accelerator.num_processes)
    images = training_images(config.data)
    config = resolve(config, images.channels, accelerator.device)
    model, parameters = config.model, trainable_parameters(build(config, images))
    return description(config, saved, accelerator, {
        "classifier": f"{parameters:,} parameters ({model.name}, {model.norm})",
        "steps": f"{total_steps(config, images):,}, {config.training.epochs:g} epochs of {len(images):,} images",
        "tested on": f"{len(images.tested):,} images",
    })  # fmt: skip


def summarize_classifier(config: StudyConfig) -> str:
    """Return the last test accuracy, where everything of a finished run is, and the command to type next."""
    folder = config.folder
    tested = last_values(folder / METRICS, "test_accuracy", "epoch")
    facts = {
        "accuracy": f"{tested['test_accuracy']:.2%} of the test images after {tested['epoch']:g} epochs"
        if tested
        else "not tested: the run had already been stopped beyond the epochs that this command asks for",
        "metrics": f"{folder / METRICS}",
    }
    if (folder / PROBES).exists():
        facts["probes"] = f"{folder / PROBES}"
    return summary(folder, facts, command_line("study", "figures", folder, "--out", "figures"))
