"""python -m eval: score a run, compare two sets of images, precompute a reference, report Table II."""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gan.utils import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # what follows takes seconds to import

from accelerate import Accelerator

from eval import formatting, metrics, scoring, table2_data
from eval.extractors import EXTRACTORS, Extractor, load_extractor
from eval.features import BATCH, Features, extract, parts
from eval.image_sets import open_images
from eval.protocols import PROTOCOLS, compare
from eval.statistics import Accumulator, GaussianStats, gaussian_stats, save_stats
from eval.table2_report import write_report
from gan.inference.generator import load_generator
from gan.utils import cli
from gan.utils.distributed import connected, on_all, on_all_in_turn, on_main
from gan.utils.errors import UserError

log = logging.getLogger(__name__)


EXAMPLES = """examples:
  python -m eval score runs/digits_msngan --protocol quick --extractor efficientnet-lite0
  python -m eval score runs/cifar10_msngan --protocol paper sngan standard --extractor inception
  python -m eval score runs/x --protocol paper --extractor inception --weights FILE.pth --reference cifar10:train
  python -m eval images FOLDER images.zip --extractor inception-pytorch-fid --json
  python -m eval reference cifar10:train --out cifar10_train.npz
  python -m eval table2 runs/cifar10_* --out table2

SPEC: digits, cifar10[:train|:test], mnist, fashion_mnist, cifar100, svhn, or the path of a folder or .zip of images.
"""


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m eval", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = cli.Parser(add_help=False)
    common.add_argument("--extractor", choices=list(EXTRACTORS), default="inception", help="network (default inception)")
    common.add_argument("--weights", type=Path, metavar="FILE", help="the network's weights (default: the published ones)")
    common.add_argument("--batch-size", type=cli.whole_number(1), default=BATCH, help=f"images in one pass (default {BATCH})")
    common.add_argument("--data", metavar="FOLDER", help="where the files of a named data set are or go (default data/NAME)")
    common.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    common.add_argument("--json", action="store_true", help="everything, with the whole protocol, as JSON on stdout")
    common.add_argument(
        "--made-by",
        choices=list(EXTRACTORS),
        help="which extractor made a statistics file that does not say so (pytorch-fid's, clean-fid's, TTUR's)",
    )

    score = commands.add_parser("score", parents=[common], help="score runs or checkpoints under named protocols")
    score.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, one of its checkpoints, or an export")
    score.add_argument(
        "--protocol",
        nargs="+",
        required=True,
        choices=list(PROTOCOLS),
        help="; ".join(f"{name}: {p.purpose}" for name, p in PROTOCOLS.items()),
    )
    score.add_argument("--reference", metavar="SPEC", help="real images, or .npz statistics (default: the run's own)")
    score.add_argument("--floor", metavar="SPEC", help="held-out real images for the floor (default: some of the reference's)")
    score.add_argument("--generator", choices=["ema", "raw"], help="averaged over training, or as trained (default: ema)")
    score.add_argument("--seed", type=cli.whole_number(0), default=0, help="of the samples (default 0)")

    images = commands.add_parser("images", parents=[common], help="compare two sets of images")
    images.add_argument("a", metavar="A", help="SPEC or .npz statistics: the generated images")
    images.add_argument("b", metavar="B", help="SPEC or .npz statistics: the real images")
    images.add_argument("--size", type=cli.whole_number(1), help="scale and crop all images to this side")
    images.add_argument("--splits", type=cli.whole_number(1), default=10, help="for the inception score of A (default 10)")
    images.add_argument(
        "--kid-size", type=cli.whole_number(2), default=1000, help="images in a subset for KID (default 1000, or all)"
    )

    reference = commands.add_parser("reference", parents=[common], help="write a set's statistics, which pytorch-fid reads too")
    reference.add_argument("spec", metavar="SPEC", help="real images")
    reference.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    reference.add_argument("--size", type=cli.whole_number(1), help="scale and crop all images to this side")

    table = commands.add_parser("table2", help="the paper's Table II from scored runs, as Markdown, CSV and a page")
    table.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    table.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    table.add_argument("--extractor", choices=list(EXTRACTORS), help="whose scores, where runs have those of several")
    return parser


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "table2":
        table = table2_data.collect(options.runs, options.extractor)
        try:
            write_report(table, options.out)
        except OSError as error:
            raise UserError(f"--out {options.out}: cannot be written ({error.strerror}).") from None
        log.info(f"wrote {options.out / 'table2.html'}, table2.md and table2.csv beside it")
        print((options.out / "table2.md").read_text(), end="")
        return 0
    if options.command == "reference" and options.out.suffix != ".npz":
        raise UserError(f"--out {options.out}: statistics are a .npz file.")
    with connected(options.cpu) as accelerator:
        {"score": score, "images": images, "reference": reference}[options.command](options, accelerator)
    return 0


def _extractor(options: argparse.Namespace, accelerator: Accelerator) -> Extractor:
    """The network that was asked for. It may have to be downloaded: asked for once the runs or the images are found."""
    return on_all_in_turn(accelerator, partial(load_extractor, options.extractor, options.weights, accelerator.device))


def score(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Scores each run and shows its scores; the record is in its scores.jsonl."""
    load = partial(load_generator, weights=options.generator, device=accelerator.device)
    # One process finds the checkpoints: a run may be training, and the others would find newer ones.
    folders = on_main(accelerator, lambda: [load(path).folder for path in options.runs])
    generators = [on_all(accelerator, partial(load, folder)) for folder in folders]
    extractor = _extractor(options, accelerator)
    wanted = [PROTOCOLS[name] for name in dict.fromkeys(options.protocol)]
    judges: dict[str, scoring.Scorer] = {}
    for path, generator in zip(options.runs, generators, strict=True):
        data = repr(generator.config.data)
        if data not in judges:
            reference = partial(
                scoring.reference_of, spec=options.reference, extractor=extractor, made_by=options.made_by, folder=options.data
            )
            opened = on_all(accelerator, partial(reference, generator.config))
            stored = partial(scoring.stored, generator.config, options.floor, options.data)
            held_out = on_all(accelerator, stored) if options.floor else None
            name = scoring.name_of(generator.config, options.reference)
            judges[data] = scoring.make_scorer(accelerator, extractor, opened, name, wanted, held_out)
        records = scoring.score_generator(generator, judges[data], wanted, seed=options.seed, batch=options.batch_size)
        if accelerator.is_main_process:
            for record in records:
                print(json.dumps(record, sort_keys=True) if options.json else formatting.describe(str(path), record))


def images(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Compares two sets: every score that their number and the extractor allow."""
    team = scoring.team_of(accelerator)
    specs = (options.a, options.b)
    opened = {
        spec: on_all(accelerator, partial(open_images, spec, size=options.size, folder=options.data))
        for spec in specs
        if not spec.endswith(".npz")
    }
    shapes = {spec: images.identity["image"] for spec, images in opened.items()}
    on_all(accelerator, partial(_check_same_size, shapes))
    extractor = _extractor(options, accelerator)
    known = {
        spec: on_all(accelerator, partial(scoring.load_statistics, Path(spec), extractor, options.made_by))
        for spec in specs
        if spec not in opened
    }
    shapes |= {spec: moments.provenance.get("images", {}).get("image") for spec, moments in known.items()}
    on_all(accelerator, partial(_check_same_size, shapes))
    sides: list[tuple[Features | None, GaussianStats | None]] = []
    for spec in specs:
        if spec in known:
            sides.append((None, known[spec]))
        else:
            features = extract(opened[spec], extractor, team=team, batch=options.batch_size)
            sides.append((features, team.only_main(partial(_moments, features))))
    if not accelerator.is_main_process:
        return
    found = compare(sides[0], sides[1], splits=options.splits, kid_size=options.kid_size)
    found["provenance"] = {
        "extractor": extractor.identity,
        "a": _identity_of(sides[0]),
        "b": _identity_of(sides[1]),
        "seed": metrics.SEED,
        "deviation": "ddof=0: IS over splits, KID over subsets",
        "versions": scoring.versions(),
    }
    if options.json:
        print(json.dumps(found, sort_keys=True))
        return
    print(formatting.describe_comparison(found))


def _identity_of(side: tuple[Features | None, GaussianStats | None]) -> dict[str, Any]:
    features, moments = side
    assert moments is not None
    return moments.identity if features is None else features.images


def _moments(features: Features | None) -> GaussianStats:
    assert features is not None
    return gaussian_stats(features.values)


def _check_same_size(shapes: Mapping[str, list[int] | None]) -> None:
    """Of the images of each SPEC, as (C, H, W); None where a statistics file does not say."""
    known = [(spec, shape) for spec, shape in shapes.items() if shape is not None]
    if len(known) == 2 and known[0][1] != known[1][1]:
        (a, (_, h, w)), (b, (_, i, v)) = known
        raise UserError(
            f"{a} has images of {w}x{h}, {b} of {v}x{i}: the score would measure the scaling too. Give --size {min(h, w, i, v)}."
        )


def reference(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Writes the statistics of a set."""
    opened = on_all(accelerator, partial(open_images, options.spec, size=options.size, folder=options.data))
    extractor = _extractor(options, accelerator)
    team = scoring.team_of(accelerator)
    seen = Accumulator(extractor.dimensions)
    for part in parts(opened, extractor, team=team, batch=options.batch_size):  # never all features at once
        seen.update(part.values)
    if not team.is_main:
        return
    provenance: dict[str, Any] = {
        "extractor": extractor.identity,
        "images": opened.identity,
        "versions": scoring.versions(),
    }
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_stats(options.out, seen.moments(provenance))
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written ({error.strerror}).") from None
    log.info(f"wrote {options.out}: {seen.count:,} images, {extractor.name}")


if __name__ == "__main__":
    interrupts.raise_again()
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
