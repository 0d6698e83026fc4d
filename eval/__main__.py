"""Score runs, compare sets of images, show nearest training images, write statistics of real images, report Table II."""

import sys
from collections.abc import Sequence

from eval.options import parser
from gan.utils import cli
from gan.utils.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.command in ("score", "compare", "neighbours") and str(options.weights) in ("ema", "raw"):
        options.generator = str(options.weights)
    elif options.command != "table2" and options.weights is not None:
        options.extractor_weights = options.weights
    if options.command == "reference" and options.out.suffix != ".npz":
        raise UserError(f"--out {options.out}: statistics are stored in a .npz file. Give a name that ends in .npz.")
    if options.command == "neighbours" and options.out.suffix != ".png":
        raise UserError(f"--out {options.out}: samples and their neighbours are a picture. Give a name that ends in .png.")
    if options.command in ("reference", "neighbours"):
        cli.refuse_existing(options)
    from eval.commands import run  # imports torch, which takes seconds: not for a mistake above

    run(options)
    return 0


console = cli.program(main)

if __name__ == "__main__":
    sys.exit(console())
