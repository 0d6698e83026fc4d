"""What the commands of ``python -m study`` do."""

import argparse

from gan.launch.command import SweepCommand
from gan.training.command import run_command
from gan.utils import cli
from study.classifier_task import train
from study.config import StudyConfig
from study.released import evaluate_released
from study.results import read_runs
from study.speed import write_speed
from study.summary import describe_classifier, summarize_classifier
from study.sweep import PROGRAM, plan_classifiers, readable, reason_to_skip
from study.tables import accuracy_table, write_tables


def run(options: argparse.Namespace) -> int:
    """Run the command that ``options`` name, whose ``settings`` are those of ``train`` and ``evaluate``; return the exit code."""
    if options.command == "train":
        config: StudyConfig = options.settings
        programs = (describe_classifier, train, summarize_classifier)
        return run_command(config, *programs, dry_run=options.dry_run, device=options.device)
    if options.command == "sweep":
        return _sweep(options)
    if options.command == "evaluate":
        print(evaluate_released(options.file, options.settings, options.norm, options.data))
    elif options.command == "speed":
        print(write_speed(options.out, options.rounds))
    elif options.command == "tables":
        print(write_tables(read_runs(options.runs), options.out))
    else:
        from study.figures import write_figures  # matplotlib takes a second to import

        files = write_figures(read_runs(options.runs), options.out, options.rate, together=options.together)
        print("\n".join(map(str, files)))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    paths = [cli.find_config(name) for name in options.config]
    command: SweepCommand[StudyConfig] = SweepCommand.of(options)
    runs = plan_classifiers(paths, options.norms, options.rates, options.seeds, options.overrides)
    code = command.run(runs, PROGRAM, reason_to_skip)
    if command.trains and (results := readable([run.config.folder for run in runs])):
        print(accuracy_table(results))
    return code
