"""python -m study: train the paper's classifiers, sweep their settings, make the paper's tables and figures."""

import argparse
import os
import sys
from collections.abc import Sequence

from gan.launch.options import add_sweep_options
from gan.utils import cli
from gan.utils.errors import UserError
from study.config import NORM_NAMES, NORMS, load_study_config

EXAMPLES = """examples:
  python -m study train --config configs/study/digits_cnn3.yaml model.norm=spectral run.name=digits_sn
  python -m study sweep --config configs/study/mnist_cnn3.yaml --rates 0.1 0.001 0.0001 --seeds 0 1 2
  python -m study evaluate SNconv_0.001_MNIST.t7 --config study/mnist_cnn3 mnist
  python -m study tables runs/study --out tables
  python -m study figures runs/study --out figures
  python -m study speed --out tables

The same command resumes a stopped run. All settings, with their meaning: docs/settings.md.
"""
RATES = (0.1, 0.001, 0.0001)  # learning rates of the paper


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m study", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    train = commands.add_parser("train", help="train one classifier")
    train.add_argument("--config", required=True, help="YAML file of settings, or the name of one in configs/")
    train.add_argument("--dry-run", action="store_true", help="show what would run and where it would write; write nothing")
    sweep = commands.add_parser("sweep", help="train every combination of configuration, norm, learning rate and seed")
    add_sweep_options(sweep)
    sweep.add_argument(
        "--norms", nargs="+", choices=tuple(NORM_NAMES), default=NORMS, metavar="NORM", help="default: BN, SN, MSN"
    )
    sweep.add_argument("--rates", nargs="+", type=_rate, default=RATES, metavar="LR", help="default: 0.1 0.001 0.0001")
    sweep.add_argument("--seeds", nargs="+", type=cli.whole_number(0), default=(0,), metavar="SEED", help="default: 0")
    evaluate = commands.add_parser("evaluate", help="accuracy of a classifier that the paper's authors released, in our networks")
    evaluate.add_argument("file", type=cli.path, metavar="FILE.t7", help="one of the authors' files, read without running code")
    evaluate.add_argument(
        "data",
        type=cli.path_or_name,
        metavar="DATA",
        help="folder or .zip of class folders, or a data set's name (its test split)",
    )
    evaluate.add_argument("--config", required=True, help="YAML file with the network, or the name of one in configs/")
    evaluate.add_argument("--norm", choices=tuple(NORM_NAMES), metavar="NORM", help="default: that of the file, as released")
    for command in (train, sweep):
        command.add_argument("--device", type=cli.device, help="such as cpu or cuda:0 (default: a GPU if there is one)")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file")
    tables = commands.add_parser("tables", help="Tables I and III as Markdown and CSV: published, measured, difference")
    figures = commands.add_parser("figures", help="Figures 1 to 6 as PDF and PNG, from the records of runs")
    tables.add_argument("runs", nargs="*", type=cli.path, metavar="RUN", help="runs, or folders that contain runs")
    figures.add_argument("runs", nargs="+", type=cli.path, metavar="RUN", help="runs, or folders that contain runs")
    speed = commands.add_parser("speed", help="measure the claim that SN and MSN train faster than BN (some minutes)")
    speed.add_argument("--rounds", type=cli.whole_number(1), default=10, metavar="N", help="steps under each norm (default: 10)")
    figures.add_argument("--rate", type=_rate, metavar="LR", help="learning rate to show (default: 0.001, else the largest)")
    figures.add_argument(
        "--together", action="store_true", help="one figure for all runs of a model, such as those as written and as released"
    )
    for command in (tables, figures, speed):
        command.add_argument("--out", type=cli.path, required=True, metavar="FOLDER", help="folder for the files")
    return parser


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a learning rate above 0, such as 0.001")
    return rate


def _settings(arguments: Sequence[str]) -> list[str]:
    """Return the settings, key=value, which may come anywhere, also after an option that takes several values.

    A path may contain "=" too: one that is there, or is given to an option.
    """
    words = zip(["", *arguments], arguments, strict=False)
    free = [word for before, word in words if before not in ("--config", "--out") and not word.startswith("-")]
    # Path.exists raises OSError for a name that is too long.
    return [word for word in free if "=" in word and not os.path.exists(word)]  # noqa: PTH110


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    pairs = _settings(arguments)
    options = parser.parse_args([word for word in arguments if word not in pairs])
    if options.command in ("train", "sweep"):
        options.overrides = [*options.overrides, *pairs]
    elif options.command == "evaluate":
        options.overrides = pairs
    elif pairs:
        raise UserError(f"{pairs[0]!r}: {options.command} takes no settings.")
    if options.command in ("train", "evaluate"):
        options.settings = load_study_config(cli.find_config(options.config), options.overrides)
    from study.commands import run  # imports torch, which takes seconds: not for a mistake above

    return run(options)


console = cli.program(main)

if __name__ == "__main__":
    sys.exit(console())
