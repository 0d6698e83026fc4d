"""Train a GAN: python train.py --config configs/digits_msngan.yaml [key=value ...] [--dry-run]"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gan.config import GanConfig, load_config
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.settings import loads, refuse_other_program
from study.config import StudyConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

DEFAULT = cli.find_config("digits_msngan")
EXAMPLES = """examples:
  python train.py --config configs/digits_msngan.yaml
  python train.py --config configs/cifar10_msngan.yaml training.steps=50000 seed=1 run.name=msngan_seed1
  python train.py --config configs/folder.yaml data.path=PATH_TO_IMAGES.zip --dry-run
  accelerate launch --multi_gpu --num_processes 8 train.py --config configs/cifar10_msngan.yaml

The same command resumes a stopped run. All settings, with their meaning: docs/settings.md.
"""


def main(arguments: Sequence[str]) -> int:
    parser = cli.Parser(
        prog="train.py", description="Train a GAN.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(DEFAULT), help="YAML file of settings, or the name of one in configs/")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and where it would write; change nothing")
    parser.add_argument("--device", type=cli.device, help="such as cpu or cuda:0 (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    parser.add_argument("--page", action="store_true", help="at the end, write page.html into the run's folder (see gan page)")
    options = parser.parse_intermixed_args(arguments)
    path = cli.find_config(options.config)
    config = _load(path, options.overrides)
    cli.warn_of_another_folder(path, options.overrides, config.folder)

    # These import torch, which takes seconds: not for a mistyped setting.
    from gan.runs.summary import describe_gan, summarize_gan
    from gan.training.command import run_command

    def summarize(config: GanConfig) -> str:
        page = config.folder / "page.html"
        if options.page:
            from gan.page.command import write_page  # imports what a dry run needs not

            write_page([config.folder], page)
        return summarize_gan(config, {"page": str(page)} if options.page else {})

    return run_command(config, describe_gan, _train, summarize, dry_run=options.dry_run, device=options.device)


def _train(config: GanConfig, accelerator: "Accelerator") -> int:
    # These import scipy besides, which takes another second: not for a dry run.
    from eval.scoring import open_training_scorer
    from gan.training.gan_task import train

    return train(config, accelerator, open_scorer=open_training_scorer)


def _load(path: Path, overrides: Sequence[str]) -> GanConfig:
    try:
        return load_config(path, overrides)
    except UserError:
        if not loads(GanConfig, path):
            refuse_other_program(path, StudyConfig, "python -m study train")
        raise


console = cli.program(main)

if __name__ == "__main__":
    sys.exit(console())
