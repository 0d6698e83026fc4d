"""The options of ``python -m eval``."""

import argparse
from typing import Any, get_args

from eval.protocols import PROTOCOLS
from gan.config import Extractor
from gan.utils import cli
from gan.utils.settings import MAX_IMAGE_SIZE

BATCH = 64  # images in one pass of the network; equals CHUNK of gan/inference/sampling.py
EXTRACTORS = get_args(Extractor)
DESCRIPTION = "Score runs, compare two sets of images, write statistics of real images, report the paper's Table II."
EXAMPLES = """examples:
  python -m eval score runs/digits_msngan --protocol quick --extractor efficientnet-lite0
  python -m eval score runs/cifar10_msngan --protocol paper sngan standard --extractor inception
  python -m eval score runs/x --protocol paper --extractor inception --extractor-weights FILE.pth --reference cifar10:train
  python -m eval score runs/x --follow --protocol quick --extractor inception
  python -m eval compare runs/msn_seed* --against runs/sn_seed* --protocol paper --extractor inception
  python -m eval neighbours runs/x --extractor inception --out neighbours.png
  python -m eval images FOLDER images.zip --extractor inception-pytorch-fid --json
  python -m eval reference cifar10:train --out cifar10_train.npz
  python -m eval table2 runs/cifar10_* --out table2

SPEC: digits, cifar10[:train|:test], mnist, fashion_mnist, cifar100, svhn, or the path of a folder or .zip of images.
"""


def parser() -> cli.Parser:
    """Return the parser of ``python -m eval``."""
    root = cli.Parser(
        prog="python -m eval", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common_options()
    size_help = "scale and crop all images to this width and height in pixels"

    score = commands.add_parser("score", parents=[common], help="score runs or checkpoints under named protocols")
    score.add_argument("runs", type=cli.path, nargs="+", metavar="RUN", help=cli.RUN)
    purposes = "; ".join(f"{name}: {protocol.purpose}" for name, protocol in PROTOCOLS.items())
    score.add_argument("--protocol", nargs="+", required=True, choices=list(PROTOCOLS), help=purposes)
    score.add_argument(
        "--floor",
        type=cli.path_or_name,
        metavar="SPEC",
        help="held-out real images to score as if generated (default: some of the reference's)",
    )
    score.add_argument(
        "--all", action="store_true", help="score every checkpoint and milestone that lacks a score, in the order of their steps"
    )
    score.add_argument(
        "--follow",
        action="store_true",
        help="as --all, and wait for new ones until the last step of each run, or until it has diverged",
    )
    _add_generator_options(score)

    compare = commands.add_parser("compare", parents=[common], help="tell which of two groups of trainings is better")
    compare.set_defaults(floor=None)
    compare.add_argument("a", type=cli.path, nargs="+", metavar="A", help="runs or checkpoints that differ only by their seed")
    compare.add_argument(
        "--against", dest="b", type=cli.path, nargs="+", required=True, metavar="B", help="runs or checkpoints to compare A with"
    )
    compare.add_argument(
        "--protocol", choices=list(PROTOCOLS), default="paper", help="number of images and of the reference (default paper)"
    )
    compare.add_argument(
        "--resamples", type=cli.whole_number(2), default=50, help="bootstrap samples of each generator's images (default 50)"
    )
    _add_generator_options(compare)

    images = commands.add_parser("images", parents=[common], help="compare two sets of images")
    images.add_argument("a", type=cli.path_or_name, metavar="A", help="SPEC or .npz statistics of the generated images")
    images.add_argument("b", type=cli.path_or_name, metavar="B", help="SPEC or .npz statistics of the real images")
    images.add_argument("--size", type=cli.whole_number(1, MAX_IMAGE_SIZE), help=size_help)
    images.add_argument("--splits", type=cli.whole_number(1), default=10, help="splits of A for the inception score (default 10)")
    images.add_argument(
        "--kid-size", type=cli.whole_number(2), default=1000, help="images in a subset for KID (default 1000, or all)"
    )

    _add_neighbours(commands, common)

    reference = commands.add_parser("reference", parents=[common], help="write statistics of a set, for eval and pytorch-fid")
    reference.add_argument("spec", type=cli.path_or_name, metavar="SPEC", help="real images")
    cli.add_out(reference, "file to write", metavar="FILE.npz")
    reference.add_argument("--size", type=cli.whole_number(1, MAX_IMAGE_SIZE), help=size_help)

    table = commands.add_parser("table2", help="report the paper's Table II from scored runs, as Markdown, CSV and HTML")
    table.add_argument("runs", type=cli.path, nargs="+", metavar="RUN", help="a run's folder")
    table.add_argument("--out", type=cli.path, required=True, metavar="FOLDER", help="folder to write into")
    table.add_argument("--extractor", choices=EXTRACTORS, help="extractor of the scores, where runs have several")
    return root


def _add_neighbours(commands: Any, common: cli.Parser) -> None:
    near = commands.add_parser("neighbours", parents=[common], help="show samples beside their nearest training images")
    near.add_argument("run", type=cli.path, metavar="RUN", help=cli.RUN)
    cli.add_out(near, "picture to write", metavar="FILE.png")
    near.add_argument("--count", type=cli.whole_number(1), default=16, help="number of samples (default 16)")
    near.add_argument("--neighbours", type=cli.whole_number(1), default=5, metavar="K", help="images beside each (default 5)")
    _add_choice_of_generator(near)


def _add_generator_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference",
        type=cli.path_or_name,
        metavar="SPEC",
        help="real images, or .npz statistics (default: the run's own images)",
    )
    _add_choice_of_generator(parser)


def _add_choice_of_generator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generator", choices=["ema", "raw"], help="average over training, or last weights (default: ema)")
    parser.add_argument("--checkpoint", default="newest", metavar="WHICH", help=cli.CHECKPOINT)
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, help="seed of the samples (default 0)")


def _common_options() -> cli.Parser:
    common = cli.Parser(add_help=False)
    common.add_argument("--extractor", choices=EXTRACTORS, default="inception", help="network (default inception)")
    common.add_argument(
        "--extractor-weights", type=cli.path, metavar="FILE", help="the extractor's weights (default: the published ones)"
    )
    common.add_argument(
        "--weights",
        type=cli.path,
        metavar="ema|raw",
        help="those of the generator, as --weights of `gan sample`; or a FILE, as --extractor-weights",
    )
    common.add_argument("--batch-size", type=cli.whole_number(1), default=BATCH, help=f"images in one pass (default {BATCH})")
    common.add_argument(
        "--data", type=cli.path_or_name, metavar="FOLDER", help="folder with the files of a named data set (default data/NAME)"
    )
    common.add_argument("--device", type=cli.device, help="such as cpu or cuda:0 (default: a GPU if there is one)")
    common.add_argument("--cpu", action="store_true", help="the same as --device cpu")
    common.add_argument("--json", action="store_true", help="print all scores with their protocol as JSON")
    common.add_argument(
        "--made-by",
        choices=EXTRACTORS,
        help="extractor of a statistics file that does not name it (pytorch-fid's, clean-fid's, TTUR's)",
    )
    return common
