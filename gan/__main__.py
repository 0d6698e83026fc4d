"""python -m gan: sample from a trained generator, export and publish it; check images; train many, show what they do."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from gan.inference.options import add_export_options, add_push_options, add_sample_options
from gan.launch.options import add_gan_sweep_options
from gan.page.options import add_page_options
from gan.utils import cli

EXAMPLES = """examples:
  python -m gan sample runs/digits_msngan --out grid.png --count 64 --seed 0
  python -m gan sample runs/digits_msngan --out walk.png --interpolate 8
  python -m gan sample runs/digits_msngan --out training.gif --animate
  python -m gan sample runs/digits_msngan --out kept.gif --animate checkpoints --count 16
  python -m gan sample runs/digits_msngan --out images.zip --single --count 2000
  python -m gan sample runs/digits_msngan --out near.png --neighbours 5
  python -m gan sample runs/digits_msngan --out best.png --checkpoint best
  python -m gan sample runs/digits_msngan --out raw.png --checkpoint 500 --weights raw
  python -m gan sample hf://OWNER/NAME --out grid.png
  python -m gan export runs/digits_msngan --out exported
  python -m gan push runs/digits_msngan OWNER/NAME --license cc-by-4.0
  python -m gan check PATH_TO_IMAGES
  python -m gan sweep --config digits_msngan --set optimizer.d_lr=1e-4,2e-4 loss.name=sngan,hinge --seeds 0 1 2
  python -m gan sweep --config cifar10_sngan cifar10_msngan --seeds 0 1 2 --slurm --submit
  python -m gan status runs --watch
  python -m gan page runs/digits_msngan --out page.html
"""
# The module with the function of each command. It is imported when the command is run: most import torch, which takes seconds.
_MODULES = {
    "sample": "gan.inference.command",
    "export": "gan.inference.command",
    "push": "gan.inference.command",
    "check": "gan.data.check",
    "sweep": "gan.launch.command",
    "status": "gan.launch.watch",
    "page": "gan.page.command",
}


def main(arguments: Sequence[str]) -> int:
    parser = cli.Parser(
        prog="python -m gan", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_sample_options(commands.add_parser("sample", help="a grid, an interpolation, an animation or single images"))
    add_export_options(commands.add_parser("export", help="the generator alone: safetensors, configuration, model card"))
    add_push_options(commands.add_parser("push", help="send an export to the Hugging Face Hub; without --yes, only show it"))
    _add_check_options(
        commands.add_parser("check", help="decode all images of a folder or zip, and name those that cannot be read")
    )
    add_gan_sweep_options(
        commands.add_parser("sweep", help="train every combination of configurations, values of settings and seeds")
    )
    _add_status_options(commands.add_parser("status", help="progress, rate, time left, losses, scores and health of runs"))
    add_page_options(commands.add_parser("page", help="one HTML file of runs: samples over training, curves, scores, settings"))
    options = parser.parse_args(arguments)
    run = getattr(import_module(_MODULES[options.command]), options.command)
    return run(options) or 0


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=cli.path, metavar="FOLDER_OR_ZIP")
    parser.add_argument("--workers", type=cli.whole_number(0), help="processes that decode (default: one a core)")


def _add_status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=cli.path, metavar="RUN", help="runs, or folders that contain runs")
    parser.add_argument(
        "--watch", action="store_true", help="show it again every few seconds, until each run is done or has diverged"
    )


console = cli.program(main)

if __name__ == "__main__":
    sys.exit(console())
