"""The options of the command ``sweep``, for GANs and classifiers."""

import argparse

from gan.utils import cli


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the sweeps of GANs and of classifiers share."""
    count = cli.whole_number(1)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="one or more YAML files, or names")
    at_once = "runs at a time (default: one for each GPU, or --processes GPUs; 1 without GPUs)"
    parser.add_argument("--at-once", type=count, metavar="N", help=at_once)
    parser.add_argument("--processes", type=count, default=1, metavar="N", help="processes of each run, on each node (default 1)")
    parser.add_argument("--retry", action="store_true", help="train runs again that diverged")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--status", action="store_true", help="show step, time left, last score and health of each run")
    action.add_argument("--dry-run", action="store_true", help="show the grid and its cost; write nothing")
    action.add_argument("--slurm", action="store_true", help="write the sweep as an array job of Slurm, one task a run")
    parser.add_argument("--submit", action="store_true", help="with --slurm: also submit it")
    parser.add_argument("--nodes", type=count, metavar="N", help="with --slurm: nodes of each run (default 1)")
    further = "with --slurm: a further option, such as --sbatch=--time=12:00:00; may be repeated"
    parser.add_argument("--sbatch", action="append", metavar="OPTION", help=further)


def add_gan_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a sweep of GANs."""
    add_sweep_options(parser)
    values = "settings and their values: every combination is trained. A setting with one value is the same in all runs"
    device = "of every run, such as cpu or cuda:0 (default: GPUs of its own, if there are any)"
    parser.add_argument("--device", type=cli.device, help=device)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=V1,V2", action="extend", help=values)
    seeds = "of the runs (default: the seed of each configuration)"
    parser.add_argument("--seeds", nargs="+", type=cli.whole_number(0), default=[], metavar="SEED", help=seeds)
