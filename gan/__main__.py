"""python -m gan: sample from a trained generator, export it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gan import checkpoints, cli, sampling
from gan.errors import UserError
from gan.files import write_atomically
from gan.generators import TrainedGenerator, export, load_generator
from gan.progress import say

EXAMPLES = """examples:
  python -m gan sample runs/digits_msngan --out grid.png --count 64 --seed 0
  python -m gan sample runs/digits_msngan --out walk.png --interpolate 8
  python -m gan sample runs/digits_msngan --out training.gif --animate
  python -m gan sample runs/digits_msngan --out kept.gif --animate checkpoints --count 16
  python -m gan sample runs/digits_msngan --out images.zip --single --count 2000
  python -m gan sample runs/digits_msngan/checkpoints/step-00000500 --out raw.png --weights raw
  python -m gan export runs/digits_msngan --out exported
"""


def _natural(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError("must be from 0 to 2^63 - 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gan", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("run", type=Path, metavar="RUN", help="a run's folder, one of its checkpoints, or an export")
    common.add_argument("--out", type=Path, required=True, help="what to write")
    common.add_argument("--seed", type=_natural, default=0, help="of the noise (default 0)")
    common.add_argument(
        "--weights", choices=["ema", "raw"], help="averaged over training, or as trained (default: ema where kept)"
    )
    common.add_argument("--device", default="cpu", help="such as cpu or cuda:0 (default cpu)")
    sample = commands.add_parser("sample", parents=[common], help="a grid, an interpolation, an animation or single images")
    sample.add_argument("--count", type=_positive, default=64, help="number of images (default 64)")
    sample.add_argument("--columns", type=_positive, help="of a grid (default: as near to a square as it goes)")
    kind = sample.add_mutually_exclusive_group()
    kind.add_argument(
        "--interpolate", type=_positive, metavar="ROWS", help="spherical walks between two samples each, 10 images a row"
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
    if options.command == "sample" and options.animate:
        animate(options)
    else:
        try:
            generator = load_generator(options.run, options.weights, torch.device(options.device))
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it does not know or have
            raise UserError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
        if options.command == "export":
            export(generator, options.out, seed=options.seed)
        else:
            sample(generator, options)
    say(f"wrote {options.out}")
    return 0


def sample(generator: TrainedGenerator, options: argparse.Namespace) -> None:
    """Writes what ``options`` ask of ``generator``."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    dimension = generator.config.model.latent_dim
    if options.single:
        pieces = sampling.generate(generator.network, seed=options.seed, count=options.count, latent_dim=dimension)
        sampling.save_images(pieces, options.out)
        return
    if options.out.suffix.lower() != ".png":
        raise UserError(f"--out {options.out}: a grid is a .png. For single images add --single.")
    if options.interpolate:
        columns = options.columns or 10
        images = sampling.interpolations(
            generator.network, seed=options.seed, rows=options.interpolate, columns=columns, latent_dim=dimension
        )
    else:
        columns, images = options.columns, generator.sample(options.count, options.seed)
    write_atomically(options.out, sampling.encode(sampling.grid(images, columns)))


def animate(options: argparse.Namespace) -> None:
    """A GIF over a run's training, from its pictures or from its checkpoints."""
    run: Path = options.run
    if options.out.suffix.lower() != ".gif":
        raise UserError(f"--out {options.out}: an animation is a .gif.")
    if options.animate == "samples":
        pictures = sorted((run / "samples").glob("step-*.png"))
        frames = [sampling.decode(path.read_bytes()) for path in pictures]
    else:
        generators = [
            load_generator(folder, options.weights, options.device) for folder in checkpoints.steps(run / "checkpoints")
        ]
        frames = [sampling.grid(g.sample(options.count, options.seed), options.columns) for g in generators]
    if len(frames) < 2:
        where = f"{run / options.animate}"
        raise UserError(f"{where}: an animation needs at least two (found {len(frames)}). Give a run's folder.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sampling.save_animation(frames, options.out)


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
