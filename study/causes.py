"""Take the released SN apart: train the paper's SN with only one of the two differences of the authors' code.

Their code overwrites the weight by W / sigma(W) before each step, and passes no gradient through sigma. Each alone:

  python -m study.causes overwritten --config study/released/mnist_cnn3_released model.norm=spectral
  python -m study.causes constant --config study/released/mnist_cnn3_released model.norm=spectral

An experiment of docs/study.md. Its settings do not name the part: it trains in a folder of run.dir that is named after it, and
part.json in the run's folder records it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gan.models.spectral_norm import SpectralNorm, divide_by
from gan.training.command import run_command
from gan.training.context import Metrics
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.settings import set_value
from study.classifier_task import ClassifierTask, train
from study.config import StudyConfig, load_study_config
from study.data import LabelledDataset
from study.summary import describe_classifier, summarize_classifier


class OverwrittenTask(ClassifierTask):
    """SN with the gradient through sigma, whose weight is overwritten by W / sigma(W) before each step.

    The layer computes the same function as before: only the size of the optimiser's step relative to the weight changes.
    """

    part = "overwritten"

    def step(self, number: int) -> Metrics:
        with torch.no_grad():
            for module in self.network.modules():
                if isinstance(module, SpectralNorm):
                    module.layer.weight.copy_(module.weight())
        return super().step(number)


class _ConstantSigma(SpectralNorm):
    def _divided(self, u: Tensor, v: Tensor) -> Tensor:
        return divide_by(self.layer.weight, self.sigma().detach())


class ConstantTask(ClassifierTask):
    """SN without a gradient through sigma; its weight is never overwritten."""

    part = "constant"

    def __init__(self, config: StudyConfig, images: LabelledDataset, accelerator: Accelerator) -> None:
        super().__init__(config, images, accelerator)
        for module in self.network.modules():
            if isinstance(module, SpectralNorm):
                module.__class__ = _ConstantSigma  # same state; another gradient


PARTS = {task.part: task for task in (OverwrittenTask, ConstantTask)}


def main(arguments: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m study.causes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS), help="the difference of the authors' code that SN is given")
    parser.add_argument("--config", required=True, help="YAML file of settings, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file")
    options = parser.parse_intermixed_args(arguments)
    config = load_study_config(cli.find_config(options.config), options.overrides)
    config = set_value(config, "run.dir", str(Path(config.run.dir) / options.part))
    if config.model.norm != "spectral":
        raise UserError(f"model.norm={config.model.norm}: the parts are of the paper's SN. Give model.norm=spectral.")

    def train_part(config: StudyConfig, accelerator: Accelerator) -> int:
        return train(config, accelerator, PARTS[options.part])

    return run_command(config, describe_classifier, train_part, summarize_classifier, dry_run=False)


console = cli.program(main)

if __name__ == "__main__":
    sys.exit(console())
