"""What the commands of ``python -m eval`` do."""

import argparse
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from eval import table2_data
from eval.extractors import Extractor, load_extractor
from eval.features import Features, ImageSet, extract, extract_parts
from eval.following import follow_generators, kept_generators
from eval.formatting import format_comparison, format_record
from eval.generator_groups import check_groups, compare_groups, format_groups, make_comparison, run_images
from eval.image_sets import GeneratedImages, StoredImages, open_images
from eval.measurement import compare_images, warn_of_few_images
from eval.protocols import PROTOCOLS, SEED, Protocol
from eval.references import check_stats
from eval.scoring import Scorer, make_scorer, score_generator, versions
from eval.statistics import Accumulator, GaussianStats, load_stats, save_stats
from eval.table2_report import write_report
from gan.inference.generator import TrainedGenerator, load_generator, run_of
from gan.inference.images import encode
from gan.inference.neighbours import find_neighbours, training_images
from gan.utils.distributed import connected, on_all, on_all_in_turn, on_main, only_on_main
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.safe_reading import printable_lines

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Run the command that ``options`` name."""
    if options.command == "table2":
        table2(options)
        return
    commands = {"score": score, "compare": compare, "images": images, "reference": reference, "neighbours": neighbours}
    with connected("cpu" if options.cpu else options.device) as accelerator:
        commands[options.command](options, accelerator)


def _load_extractor(options: argparse.Namespace, accelerator: Accelerator) -> Extractor:
    """Return the chosen network. Call it after the runs or images are found: the weights may have to be downloaded."""
    return on_all_in_turn(accelerator, partial(load_extractor, options.extractor, options.extractor_weights, accelerator.device))


def score(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Score each run, add the records to its scores.jsonl, and print them."""
    named: Iterable[tuple[Path, TrainedGenerator]]
    unread: list[UserError] = []
    if options.all or options.follow:
        if options.checkpoint != "newest":
            raise UserError(f"--checkpoint {options.checkpoint}: --all and --follow score every checkpoint. Leave one out.")
        for run in options.runs:  # a mistake is told before the extractor is loaded
            on_main(accelerator, partial(kept_generators, run))
        named = _all_generators(options, accelerator, unread)
    else:
        named = zip(options.runs, _load_generators(options, accelerator, options.runs), strict=True)
    extractor = _load_extractor(options, accelerator)
    protocols = [PROTOCOLS[name] for name in dict.fromkeys(options.protocol)]
    scorers: dict[str, Scorer] = {}  # runs on the same data share one
    for path, generator in named:
        data = repr((generator.config.data, run_images(generator)))
        if data not in scorers:
            scorers[data] = _make_scorer(options, accelerator, extractor, generator, protocols)
        records = score_generator(generator, scorers[data], protocols, seed=options.seed, batch=options.batch_size)
        if accelerator.is_main_process:
            for record in records:
                print(json.dumps(record, sort_keys=True) if options.json else format_record(str(path), record), flush=True)
    if unread:
        raise UserError(f"generators that could not be read, and have no score: {len(unread)} (see above). All others have one.")


def _all_generators(
    options: argparse.Namespace, accelerator: Accelerator, unread: list[UserError]
) -> Iterator[tuple[Path, TrainedGenerator]]:
    """Yield each generator that the runs have kept, with its run. What is wrong with one is told and added to ``unread``.

    One that the training has removed meanwhile is no mistake.
    """
    for run, folder in follow_generators(options.runs, accelerator, options.generator, wait=options.follow):
        try:
            generator = partial(load_generator, folder, options.generator, accelerator.device)
            yield run, on_all(accelerator, generator)
        except UserError as error:
            if on_main(accelerator, partial(folder.exists)):
                unread.append(error)
            if accelerator.is_main_process:
                log.warning(f"{error} Going on with the next.")


def _load_generators(options: argparse.Namespace, accelerator: Accelerator, paths: Sequence[Path]) -> list[TrainedGenerator]:
    load = partial(load_generator, weights=options.generator, device=accelerator.device)
    # The main process chooses the checkpoints: a run that is training may save newer ones before the others look.
    folders = on_main(accelerator, lambda: [load(path, checkpoint=options.checkpoint).folder for path in paths])
    return [on_all(accelerator, partial(load, folder)) for folder in folders]


def compare(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Print the difference between two groups of trained generators, with its 95% interval and a verdict."""
    paths = [*options.a, *options.b]
    named = list(zip(paths, _load_generators(options, accelerator, paths), strict=True))
    a, b = named[: len(options.a)], named[len(options.a) :]
    on_all(accelerator, lambda: check_groups(a, b))
    extractor, protocol = _load_extractor(options, accelerator), PROTOCOLS[options.protocol]
    scorer = _make_scorer(options, accelerator, extractor, named[0][1], [protocol])
    extracted = []
    for _, generator in named:
        samples = GeneratedImages(generator.network, generator.config, generator.weights, options.seed)
        extracted.append(extract(samples, extractor, count=protocol.total, accelerator=accelerator, batch=options.batch_size))

    def report() -> None:
        features = [own for own in extracted if own is not None]
        assert scorer.reference is not None
        groups = features[: len(a)], features[len(a) :]
        found = compare_groups(*groups, scorer.reference, protocol, options.resamples)
        record = make_comparison(a, b, found, features, scorer.reference, protocol, options.resamples)
        record["provenance"] |= {"reference_name": scorer.reference_name, "versions": versions()}
        print(json.dumps(record, sort_keys=True) if options.json else format_groups(record))

    only_on_main(accelerator, report)


def _make_scorer(
    options: argparse.Namespace,
    accelerator: Accelerator,
    extractor: Extractor,
    generator: TrainedGenerator,
    protocols: Sequence[Protocol],
) -> Scorer:
    named = {"made_by": options.made_by, "folder": options.data, "floor": options.floor, "run": run_of(generator)}
    return make_scorer(accelerator, extractor, generator.config, protocols, options.reference, **named)


def images(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Compare two sets of images, and print every score that their numbers and the extractor allow."""
    specs = (options.a, options.b)
    opened = {spec: on_all(accelerator, partial(_open_side, options, spec)) for spec in specs}
    on_all(accelerator, partial(_check_same_size, opened))
    _show_remarks(list(opened.values()), accelerator)
    extractor = _load_extractor(options, accelerator)
    sides: list[Features | GaussianStats | None] = []
    for spec in specs:
        side = opened[spec]
        if isinstance(side, GaussianStats):
            on_all(accelerator, partial(check_stats, side, extractor, spec))
            sides.append(side)
        else:
            sides.append(extract(side, extractor, accelerator=accelerator, batch=options.batch_size))
        if accelerator.is_main_process:
            warn_of_few_images(spec, side, extractor.dimensions)
    only_on_main(accelerator, lambda: _print_comparison(options, extractor, *sides))


def _open_side(options: argparse.Namespace, spec: str) -> ImageSet | GaussianStats:
    if spec.lower().endswith(".npz"):
        return load_stats(Path(spec), made_by=options.made_by)
    return open_images(spec, size=options.size, folder=options.data)


def _check_same_size(sides: Mapping[str, ImageSet | GaussianStats]) -> None:
    """Raise UserError where the images of two sides have different sizes, as far as a statistics file says its size."""
    shapes = {a: side.image_shape if isinstance(side, GaussianStats) else side.identity["image"] for a, side in sides.items()}
    known = [(spec, shape) for spec, shape in shapes.items() if shape is not None]
    if len(known) == 2 and known[0][1] != known[1][1]:
        (a, (_, h, w)), (b, (_, i, v)) = known
        fixed = [(spec, shape) for spec, shape in known if isinstance(sides[spec], GaussianStats)]
        advice = f"Give --size {min(h, w, i, v)}."
        if fixed:
            (spec, (_, height, width)), *others = fixed
            advice = f"{spec} is of images of one size: make it again, or give --size {height}."
            if others or height != width:
                advice = f"{spec} is of images of one size: make it again."
        raise UserError(f"{a} has images of {w}x{h}, {b} of {v}x{i}: the score would measure the scaling too. {advice}")


def _show_remarks(opened: Sequence[ImageSet | GaussianStats], accelerator: Accelerator) -> None:
    """Say what of the folders and zips was left out."""
    for images in opened if accelerator.is_main_process else ():
        for remark in getattr(images, "remarks", ()):
            log.info(remark)


def _print_comparison(
    options: argparse.Namespace, extractor: Extractor, a: Features | GaussianStats | None, b: Features | GaussianStats | None
) -> None:
    assert a is not None and b is not None
    found = compare_images(a, b, splits=options.splits, kid_size=options.kid_size)
    found["provenance"] = {
        "extractor": extractor.identity,
        "a": a.images if isinstance(a, Features) else a.identity,
        "b": b.images if isinstance(b, Features) else b.identity,
        "seed": SEED,
        "deviation": "ddof=0: IS over splits, KID over subsets",
        "versions": versions(),
    }
    print(json.dumps(found, sort_keys=True) if options.json else format_comparison(found))


def reference(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Write the statistics of a set of real images."""
    opened = on_all(accelerator, partial(open_images, options.spec, size=options.size, folder=options.data))
    _show_remarks([opened], accelerator)
    extractor = _load_extractor(options, accelerator)
    accumulator = Accumulator(extractor.dimensions)
    # Part by part, so that the features of all images are never in memory together.
    for part in extract_parts(opened, extractor, accelerator=accelerator, batch=options.batch_size):
        accumulator.update(part.values)
    if not accelerator.is_main_process:
        return
    warn_of_few_images(options.spec, opened, extractor.dimensions)
    provenance = {"extractor": extractor.identity, "images": opened.identity, "versions": versions()}
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_stats(options.out, accumulator.stats(provenance))
    except OSError as error:
        raise _not_writable(options.out, error) from None
    log.info(f"wrote {options.out}: {accumulator.count:,} images, {extractor.name}")


def neighbours(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Write samples of a generator beside their nearest training images, and print the distances."""
    (generator,) = _load_generators(options, accelerator, [options.run])
    stored = StoredImages(on_all(accelerator, partial(training_images, generator, options.data, options.neighbours)))
    extractor = _load_extractor(options, accelerator)
    training = list(extract_parts(stored, extractor, accelerator=accelerator, batch=options.batch_size))

    def show() -> None:
        found = find_neighbours(
            generator,
            stored.images,
            count=options.count,
            neighbours=options.neighbours,
            seed=options.seed,
            space=extractor.name,
            features=lambda images: np.concatenate([extractor(part)[0] for part in images.split(options.batch_size)]),
            training_features=(part.values for part in training),
        )
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.out, encode(found.grid()))
        except OSError as error:
            raise _not_writable(options.out, error) from None
        log.info(f"wrote {options.out}")
        print(json.dumps(found.as_json()) if options.json else found.describe())

    only_on_main(accelerator, show)


def table2(options: argparse.Namespace) -> None:
    """Write the report of the paper's Table II, and print it as Markdown."""
    table = table2_data.collect(options.runs, options.extractor)
    try:
        text = write_report(table, options.out)
    except OSError as error:
        raise _not_writable(options.out, error) from None
    log.info(f"wrote {options.out / 'table2.html'}, table2.md and table2.csv beside it")
    print(printable_lines(text), end="")


def _not_writable(out: Path, error: OSError) -> UserError:
    return UserError(f"--out {out}: cannot be written ({error.strerror}).")
