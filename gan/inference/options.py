"""The options of the commands ``sample``, ``export`` and ``push``."""

import argparse
from typing import get_args

from gan.config import Extractor
from gan.utils import cli

PIXELS = "pixels"  # the space of --neighbours that is no extractor's


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``sample``."""
    _add_generator_options(parser)
    cli.add_out(parser, "what to write")
    parser.add_argument("--count", type=cli.whole_number(1), help="number of images (default 64)")
    parser.add_argument(
        "--columns",
        type=cli.whole_number(1),
        help="of a grid (default: as near to a square as it goes), or images in a row of --interpolate (default 10)",
    )
    kind = parser.add_mutually_exclusive_group()
    walks = "spherical walks between two samples each, one a row"
    kind.add_argument("--interpolate", type=cli.whole_number(1), metavar="ROWS", help=walks)
    frames = "a GIF over training: of the pictures that the run wrote (default), or of a grid from each kept checkpoint"
    kind.add_argument("--animate", nargs="?", const="samples", choices=["samples", "checkpoints"], help=frames)
    kind.add_argument("--single", action="store_true", help="one PNG an image, into a folder or .zip")
    near = "each sample (of --count, default 16) in a row with its K nearest training images, and their distances as text"
    kind.add_argument("--neighbours", type=cli.whole_number(1), metavar="K", help=near)
    extractors = get_args(Extractor)
    spaces = f"distances of --neighbours: {PIXELS} (default), or features of an extractor ({', '.join(extractors)})"
    parser.add_argument("--space", choices=[PIXELS, *extractors], metavar="SPACE", help=spaces)
    parser.add_argument("--data", type=cli.path_or_name, metavar="PATH", help="where the training images of --neighbours are now")
    parser.add_argument("--json", action="store_true", help="print the distances of --neighbours as JSON")


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``export``."""
    _add_generator_options(parser)
    cli.add_out(parser, "folder to write")
    _add_content_options(parser)


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``push``."""
    _add_generator_options(parser)
    parser.add_argument("name", metavar="OWNER/NAME", help="repository on the hub, which is made where there is none")
    _add_content_options(parser)
    parser.add_argument("--public", action="store_true", help="let everybody see a repository that is made (default: private)")
    parser.add_argument("--yes", action="store_true", help="send it (default: a dry run, which sends nothing)")


def _add_content_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--onnx", action="store_true", help="add generator.onnx, for programs without torch (extra: onnx)")
    parser.add_argument("--license", metavar="ID", help="for the model card, such as mit or cc-by-4.0")


def _add_generator_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=cli.path, metavar="RUN", help=cli.RUN)
    parser.add_argument("--seed", type=cli.whole_number(0), help="of the noise (default 0)")
    weights = "averaged over training, or as trained (default: ema where kept)"
    parser.add_argument("--weights", choices=["ema", "raw"], help=weights)
    parser.add_argument("--device", type=cli.device, default="cpu", help="such as cpu or cuda:0 (default cpu)")
    parser.add_argument("--checkpoint", default="newest", metavar="WHICH", help=cli.CHECKPOINT)
