"""python -m study: train the paper's classifiers, sweep their settings, make the paper's tables and figures."""

import argparse
import sys
from collections.abc import Sequence

from gan.launch.command import SweepCommand, add_sweep_options
from gan.training.command import run_command
from gan.utils import cli
from gan.utils.errors import UserError
from study.classifier_task import train
from study.config import StudyConfig, load_study_config
from study.models import NORM_NAMES, NORMS
from study.released import evaluate_released
from study.results import read_runs
from study.speed import write_speed
from study.summary import describe_classifier, summarize_classifier
from study.sweep import PROGRAM, plan_classifiers, readable, reason_to_skip
from study.tables import accuracy_table, write_tables

EXAMPLES = """examples:
  python -m study train --config configs/study/digits_cnn3.yaml model.norm=spectral run.name=digits_sn
  python -m study sweep --config configs/study/mnist_cnn3.yaml --rates 0.1 0.001 0.0001 --seeds 0 1 2
  python -m study evaluate SNconv_0.001_MNIST.t7 --config study/mnist_cnn3 mnist
  python -m study tables runs/study --out tables
  python -m study figures runs/study --out figures
  python -m study speed --out tables

The same command resumes a stopped run. All settings, with their meaning: study/config.py and gan/utils/settings.py.
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


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    # key=value may come anywhere, also after an option that takes several values.
    pairs = [word for word in arguments if "=" in word and not word.startswith("-")]
    options = parser.parse_args([word for word in arguments if word not in pairs])
    if options.command in ("train", "sweep"):
        options.overrides = [*options.overrides, *pairs]
        return _train(options) if options.command == "train" else _sweep(options)
    if options.command == "evaluate":
        config = load_study_config(cli.find_config(options.config), pairs)
        print(evaluate_released(options.file, config, options.norm, options.data))
        return 0
    if pairs:
        raise UserError(f"{pairs[0]!r}: {options.command} takes no settings.")
    if options.command == "speed":
        print(write_speed(options.out, options.rounds))
        return 0
    runs = read_runs(options.runs)
    if options.command == "tables":
        print(write_tables(runs, options.out))
    else:
        from study.figures import write_figures  # matplotlib takes a second to import

        print("\n".join(str(path) for path in write_figures(runs, options.out, options.rate)))
    return 0


def _train(options: argparse.Namespace) -> int:
    config = load_study_config(cli.find_config(options.config), options.overrides)
    return run_command(config, describe_classifier, train, summarize_classifier, dry_run=options.dry_run, device=options.device)


def _sweep(options: argparse.Namespace) -> int:
    paths = [cli.find_config(name) for name in options.config]
    command: SweepCommand[StudyConfig] = SweepCommand.of(options)
    runs = plan_classifiers(paths, options.norms, options.rates, options.seeds, options.overrides)
    code = command.run(runs, PROGRAM, reason_to_skip)
    if command.trains and (results := readable([run.config.folder for run in runs])):
        print(accuracy_table(results))
    return code


console = cli.program(main)

if __name__ == "__main__":
    sys.exit(console())
