"""The commands ``sample``, ``export`` and ``push``: what they do."""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from gan.data.decoding import decode_file
from gan.inference import hub, sampling
from gan.inference import images as image_files
from gan.inference.export import FILES
from gan.inference.export import export as export_generator
from gan.inference.generator import TrainedGenerator, load_generator
from gan.inference.neighbours import find_neighbours, training_images
from gan.inference.options import PIXELS
from gan.runs import checkpoints
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.progress import progress
from gan.utils.tables import aligned_table

log = logging.getLogger(__name__)
_MAX_GRID = 10_000  # images in one picture


def export(options: argparse.Namespace) -> None:
    """Write the generator of ``options.run`` as a folder of its own."""
    cli.refuse_existing(options)
    with _writing(options.out):
        _export(options, options.out)


def push(options: argparse.Namespace) -> None:
    """Send an export of ``options.run`` to the hub, or show what would be sent."""
    name = hub.check_name(options.name)
    if options.yes:
        hub.check_token()
    with tempfile.TemporaryDirectory(prefix="msngan-") as folder:
        exported = Path(folder) / "export"
        _export(options, exported, hub_name=name)
        sizes = {file.name: file.stat().st_size for file in sorted(exported.iterdir())}
        print(aligned_table(("bytes", "file"), [(f"{size:>13,}", file) for file, size in sizes.items()]))
        if options.yes:
            print(f"sent to {hub.push(exported, name, public=options.public, replaced=FILES)}")
            return
    if not options.license:
        log.info("The model card names no licence. Add --license ID.")
    kind = "public" if options.public else "private"
    print(f"Nothing was sent. Add --yes to send these files to {name}, a {kind} repository where there is none yet.")


def _export(options: argparse.Namespace, out: Path, hub_name: str | None = None) -> None:
    content = {"onnx": options.onnx, "license": options.license, "hub_name": hub_name}
    export_generator(_generator(options), out, seed=options.seed or 0, **content)


def sample(options: argparse.Namespace) -> int:
    """Write the pictures that ``options`` ask for. Return the exit code."""
    if options.neighbours:
        return _show_neighbours(options)
    if options.space or options.data or options.json:
        raise UserError("--space, --data and --json are options of --neighbours K. Add it.")
    out, count, seed = options.out, options.count or 64, options.seed or 0
    if options.interpolate and options.count:
        raise UserError("--count: with --interpolate ROWS a row has --columns images. Leave it out.")
    if (rows := options.interpolate or 1) * (options.columns or 10) > _MAX_GRID:
        asked = f"--interpolate {rows} " * bool(options.interpolate) + f"--columns {options.columns or 10}"
        raise UserError(f"{asked}: a picture shows at most {_MAX_GRID:,} images. Lower one.")
    if options.animate and options.checkpoint != "newest":
        raise UserError(f"--checkpoint {options.checkpoint}: an animation shows the whole training. Leave it out.")
    if options.single and options.columns:
        raise UserError("--columns: --single writes no grid. Leave it out.")
    cli.refuse_existing(options)
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if options.animate:
            _require_ending(out, ".gif", "an animation is a .gif.")
            image_files.save_animation(_frames(options, count, seed), out)
            return 0
        if not options.single:
            _require_ending(out, ".png", "a grid is a .png. For single images add --single.")
            if count > _MAX_GRID:
                raise UserError(
                    f"--count {count}: a grid shows at most {_MAX_GRID:,} images. Add --single, and --out FOLDER or .zip."
                )
        generator, columns = _generator(options), options.columns
        network, dimension = generator.network, generator.config.model.latent_dim
        if options.single:
            pieces = sampling.generate(network, seed=seed, count=count, latent_dim=dimension)
            with progress(count, "image") as bar:
                image_files.save_images(_counted(pieces, bar.update), out)
            return 0
        if options.interpolate:
            columns = columns or 10
            images = sampling.interpolations(network, seed=seed, rows=rows, columns=columns, latent_dim=dimension)
        else:
            images = generator.sample(count, seed)
        write_atomically(out, image_files.encode(image_files.grid(images, columns)))
    return 0


def _show_neighbours(options: argparse.Namespace) -> int:
    """Write samples beside their nearest training images, and print the distances. Return the exit code."""
    cli.refuse_existing(options)
    _require_ending(options.out, ".png", "samples and their neighbours are a .png.")
    count, neighbours = options.count or 16, options.neighbours
    if options.columns:
        raise UserError("--columns: with --neighbours a row is a sample and its neighbours. Leave it out.")
    if count * (neighbours + 1) > _MAX_GRID:
        raise UserError(f"--count {count} --neighbours {neighbours}: a picture shows at most {_MAX_GRID:,} images. Lower one.")
    if options.space not in (None, PIXELS):
        return _neighbours_by_extractor(options, count)
    with _writing(options.out):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        generator = _generator(options)
        images = training_images(generator, options.data, neighbours)
        found = find_neighbours(generator, images, count=count, neighbours=neighbours, seed=options.seed or 0)
        write_atomically(options.out, image_files.encode(found.grid()))
    print(json.dumps(found.as_json()) if options.json else found.describe())
    return 0


def _neighbours_by_extractor(options: argparse.Namespace, count: int) -> int:
    """Run the command of eval, which has the extractors: nothing here imports it."""
    chosen = {"--count": count, "--neighbours": options.neighbours, "--extractor": options.space, "--seed": options.seed or 0}
    chosen |= {"--out": options.out, "--generator": options.weights, "--checkpoint": options.checkpoint}
    chosen |= {"--device": options.device, "--data": options.data}
    words = [str(word) for pair in chosen.items() if pair[1] is not None for word in pair]
    flags = [f"--{name}" for name in ("json", "force") if getattr(options, name)]
    return subprocess.run([sys.executable, "-m", "eval", "neighbours", str(options.run), *words, *flags], check=False).returncode


def _counted(pieces: Iterator[Tensor], count: Callable[[int], object]) -> Iterator[Tensor]:
    """Yield ``pieces``, and pass the number of images in each to ``count`` once it has been used."""
    for piece in pieces:
        yield piece
        count(len(piece))


def _require_ending(out: Path, ending: str, expected: str) -> None:
    if out.suffix.lower() != ending:
        raise UserError(f"--out {out}: {expected}")


def _frames(options: argparse.Namespace, count: int, seed: int) -> list[image_files.Pixels]:
    """Return the frames of an animation over a run's training: the pictures that it wrote, or a grid from each checkpoint."""
    if options.animate == "samples":
        if any(option is not None for option in (options.count, options.seed, options.columns, options.weights)):
            raise UserError("--animate shows the pictures that the run wrote; for other samples use --animate checkpoints.")
        paths = sorted((options.run / "samples").glob("step-*.png"), key=lambda path: (len(path.name), path.name))  # by step
        frames = [np.array(decode_file(path)) for path in paths]
        setting = "samples.every"
    else:
        generators = (
            load_generator(folder, options.weights, options.device) for folder in checkpoints.steps(options.run / "checkpoints")
        )
        frames = [image_files.grid(generator.sample(count, seed), options.columns) for generator in generators]
        setting = "checkpoint.every and checkpoint.keep"
    if len(frames) < 2:
        where = options.run / options.animate
        raise UserError(f"{where}: an animation needs at least two (found {len(frames)}). See {setting}.")
    return frames


def _generator(options: argparse.Namespace) -> TrainedGenerator:
    return load_generator(options.run, options.weights, options.device, options.checkpoint)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Report what the block wrote to ``out``, or an OSError of that file or its folder as the user's mistake."""
    try:
        yield
    except OSError as error:
        place = str(error.filename or out)  # of a full disk there is no name
        if out.name not in place and Path(place) not in out.parents:
            raise
        raise UserError(f"--out {out}: cannot be written ({error.strerror}).") from None
    log.info(f"wrote {out}")
