"""python -m gan: sample from a trained generator, export it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gan.data.decoding import MAX_FILE_BYTES, decode
from gan.inference import images as image_files
from gan.inference import sampling
from gan.inference.export import export
from gan.inference.generator import TrainedGenerator, load_generator
from gan.runs import checkpoints
from gan.utils import cli
from gan.utils.errors import UserError, first_line
from gan.utils.files import write_atomically
from gan.utils.safe_reading import read_file

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m gan sample runs/digits_msngan --out grid.png --count 64 --seed 0
  python -m gan sample runs/digits_msngan --out walk.png --interpolate 8
  python -m gan sample runs/digits_msngan --out training.gif --animate
  python -m gan sample runs/digits_msngan --out kept.gif --animate checkpoints --count 16
  python -m gan sample runs/digits_msngan --out images.zip --single --count 2000
  python -m gan sample runs/digits_msngan/checkpoints/step-00000500 --out raw.png --weights raw
  python -m gan export runs/digits_msngan --out exported
"""


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m gan", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = cli.Parser(add_help=False)
    common.add_argument("run", type=Path, metavar="RUN", help="a run's folder, one of its checkpoints, or an export")
    common.add_argument("--out", type=Path, required=True, help="what to write")
    common.add_argument("--seed", type=cli.whole_number(0), help="of the noise (default 0)")
    common.add_argument(
        "--weights", choices=["ema", "raw"], help="averaged over training, or as trained (default: ema where kept)"
    )
    common.add_argument("--device", default="cpu", help="such as cpu or cuda:0 (default cpu)")
    sample = commands.add_parser("sample", parents=[common], help="a grid, an interpolation, an animation or single images")
    sample.add_argument("--count", type=cli.whole_number(1), help="number of images (default 64)")
    sample.add_argument("--columns", type=cli.whole_number(1), help="of a grid (default: as near to a square as it goes)")
    kind = sample.add_mutually_exclusive_group()
    kind.add_argument(
        "--interpolate",
        type=cli.whole_number(1),
        metavar="ROWS",
        help="spherical walks between two samples each, 10 images a row",
    )
    kind.add_argument(
        "--animate",
        nargs="?",
        const="samples",
        choices=["samples", "checkpoints"],
        help="a GIF over training: of the pictures that the run wrote (default), or of a grid from each kept checkpoint",
    )
    kind.add_argument("--single", action="store_true", help="one PNG an image, into a folder or .zip")
    commands.add_parser("export", parents=[common], help="the generator alone: safetensors, configuration, model card")
    return parser


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "export":
            export(_generator(options, options.run), options.out, seed=options.seed or 0)
        else:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            sample(options)
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written ({error.strerror}).") from None
    log.info(f"wrote {options.out}")
    return 0


def _frame(path: Path) -> image_files.Pixels:
    try:
        return np.array(decode(read_file(path, MAX_FILE_BYTES), str(path)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _generator(options: argparse.Namespace, path: Path) -> TrainedGenerator:
    try:
        return load_generator(path, options.weights, torch.device(options.device))
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it does not know or have
        raise UserError(f"--device {options.device}: {first_line(error)} Try --device cpu.") from None


def sample(options: argparse.Namespace) -> None:
    """Writes the pictures that ``options`` ask for."""
    count, seed = options.count or 64, options.seed or 0
    if options.animate:
        save_animation(options, count, seed)
        return
    if not options.single and options.out.suffix.lower() != ".png":
        raise UserError(f"--out {options.out}: a grid is a .png. For single images add --single.")
    generator = _generator(options, options.run)
    dimension = generator.config.model.latent_dim
    if options.single:
        pieces = sampling.generate(generator.network, seed=seed, count=count, latent_dim=dimension)
        image_files.save_images(pieces, options.out)
    elif options.interpolate:
        columns = options.columns or 10
        rows = options.interpolate
        images = sampling.interpolations(generator.network, seed=seed, rows=rows, columns=columns, latent_dim=dimension)
        write_atomically(options.out, image_files.encode(image_files.grid(images, columns)))
    else:
        write_atomically(options.out, image_files.encode(image_files.grid(generator.sample(count, seed), options.columns)))


def save_animation(options: argparse.Namespace, count: int, seed: int) -> None:
    """A GIF over a run's training, from its pictures or from its checkpoints."""
    if options.out.suffix.lower() != ".gif":
        raise UserError(f"--out {options.out}: an animation is a .gif.")
    if options.animate == "samples":
        if any(option is not None for option in (options.count, options.seed, options.columns, options.weights)):
            raise UserError("--animate shows the pictures that the run wrote; for other samples use --animate checkpoints.")
        pictures = sorted((options.run / "samples").glob("step-*.png"))
        frames = [_frame(path) for path in pictures]
    else:
        generators = (_generator(options, folder) for folder in checkpoints.steps(options.run / "checkpoints"))
        frames = [image_files.grid(generator.sample(count, seed), options.columns) for generator in generators]
    if len(frames) < 2:
        where = options.run / options.animate
        setting = "samples.every" if options.animate == "samples" else "checkpoint.every and checkpoint.keep"
        raise UserError(f"{where}: an animation needs at least two (found {len(frames)}). See {setting}.")
    image_files.save_animation(frames, options.out)


console = cli.program(main)

if __name__ == "__main__":
    sys.exit(console())
