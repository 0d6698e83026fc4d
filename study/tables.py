"""Tables I and III of the paper, published beside measured, as Markdown and CSV."""

import csv
import io
import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gan.models.dcgan import Discriminator, trainable_parameters
from gan.utils.files import make_folder, write_atomically
from study.models import cnn3, densenet_bc, vgg7
from study.results import ClassifierRun, ComparableRuns, comparable_runs

NORM_NAMES = {"none": "none", "batch": "BN", "spectral": "SN", "mean_spectral": "MSN"}
MODEL_NAMES = {
    "cnn3": "3-layer CNN",
    "vgg7": "VGG-7",
    "densenet_bc": "DenseNet-BC",
    "densenet_bc, published": "DenseNet-BC (BN inside the dense layers)",
}
# Table I: data set, and test accuracy in percent by norm.
PUBLISHED_ACCURACY = {
    "cnn3": ("mnist", {"batch": 98.28, "spectral": 89.55, "mean_spectral": 96.71}),
    "vgg7": ("svhn", {"batch": 88.56, "spectral": 78.43, "mean_spectral": 90.86}),
    "densenet_bc": ("cifar10", {"batch": 92.27, "spectral": 90.52, "mean_spectral": 91.65}),
}
# Table III: trainable parameters under BN, SN and MSN.
PUBLISHED_COUNTS = {
    "WGAN (discriminator)": (2_938_689, 2_935_873, 2_937_282),
    "3-layer CNN": (103_562, 103_406, 103_486),
    "VGG-7": (438_314, 437_168, 437_744),
    "DenseNet-BC": (1_009_730, 1_007_608, 1_008_670),
}
NORMS = ("batch", "spectral", "mean_spectral")


@dataclass(frozen=True)
class Cell:
    """The runs of one model, norm and learning rate that differ by their seed alone."""

    norm: str
    rate: float
    accuracies: tuple[float, ...]  # in percent, of the runs that came to their end
    diverged: int
    unfinished: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Over trainings with other seeds (ddof 1); None for a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def whole(self) -> bool:
        return bool(self.accuracies) and not self.diverged and not self.unfinished

    def text(self) -> str:
        parts = []
        if self.accuracies:
            spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
            parts.append(f"{self.mean:.2f}{spread} ({len(self.accuracies)})")
        if self.diverged:
            parts.append(f"{self.diverged} diverged")
        if self.unfinished:
            parts.append(f"{self.unfinished} unfinished")
        return ", ".join(parts)


def cells(row: ComparableRuns) -> list[Cell]:
    """In the order of norms and, from the largest, learning rates."""
    found = []
    for (norm, rate), runs in row.runs.items():
        done = [run for run in runs if run.complete and run.failure is None]
        diverged = sum(run.failure is not None for run in runs)
        accuracies = tuple(100 * run.accuracy for run in done)
        found.append(Cell(norm, rate, accuracies, diverged, len(runs) - len(done) - diverged))
    return sorted(found, key=lambda cell: (list(NORM_NAMES).index(cell.norm), -cell.rate))


def best(found: Sequence[Cell]) -> Cell | None:
    """Of the cells of one model and norm, the one with the best mean, as the paper reports; None where none is whole."""
    return max((cell for cell in found if cell.whole), key=lambda cell: cell.mean, default=None)


def data_name(result: ClassifierRun) -> str:
    """The data set's name, or that of the folder or file that it came from."""
    data = result.config.data
    if data.name != "folder":
        return data.name
    path = Path(data.path or "")
    return path.name if path.suffix == ".zip" else "/".join(path.parts[-2:])


def _published(result: ClassifierRun, norm: str) -> tuple[float, str, bool] | None:
    """What Table I has for the model and norm, for which data, and whether these are the data; None where it has nothing."""
    data, accuracies = PUBLISHED_ACCURACY[result.config.model.name]
    if norm not in accuracies:
        return None
    ours = data_name(result).lower().removesuffix(".zip").removesuffix("train").rstrip("-_")
    return accuracies[norm], data, ours == data


def _budget(row: ComparableRuns, others: Sequence[ComparableRuns]) -> str:
    """What a row was trained on and for how long, and whatever else sets it apart from rows of the same model."""
    config, images = row.first.config, row.first.trained_on
    parts = [f"{images:,} images"] if images is not None else []
    parts.append(f"{config.training.epochs:g} epochs")
    if config.data.test_images is not None:
        parts.append(f"tested on {config.data.test_images:,}")
    shown = {"training.epochs", "data.train_images", "data.test_images", "images"}
    for key, value in row.settings.items():
        if key not in shown and any(other.settings[key] != value for other in others if other.first.model == row.first.model):
            parts.append(f"{key}={value}")
    return ", ".join(parts)


@dataclass(frozen=True)
class _Line:
    """One model and norm of Table I."""

    result: ClassifierRun
    budget: str
    norm: str
    cells: Sequence[Cell]

    @property
    def chosen(self) -> Cell | None:
        return best(self.cells)

    @property
    def published(self) -> tuple[float, str, bool] | None:
        return _published(self.result, self.norm)

    @property
    def difference(self) -> float | None:
        """The best measured accuracy minus the published, in points; None where the data are others."""
        chosen, published = self.chosen, self.published
        return chosen.mean - published[0] if chosen and published and published[2] else None


def _table_lines(results: Iterable[ClassifierRun]) -> list[_Line]:
    all_rows, found = comparable_runs(results), []
    for row in all_rows:
        budget = _budget(row, all_rows)
        for norm, own in itertools.groupby(cells(row), key=lambda cell: cell.norm):
            found.append(_Line(row.first, budget, norm, list(own)))
    return found


def accuracy_table(results: Iterable[ClassifierRun]) -> str:
    """Table I as Markdown: each learning rate's test accuracy in percent, the best, and what was published."""
    found = _table_lines(results)
    rates = sorted({cell.rate for line in found for cell in line.cells}, reverse=True)
    head = ["model", "data", "trained on", "norm", *(f"lr {rate:g}" for rate in rates), "best", "published", "difference"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in found:
        chosen, published, by_rate = line.chosen, line.published, {cell.rate: cell for cell in line.cells}
        there = "" if published is None else f"{published[0]:.2f}{'' if published[2] else f' on {published[1]}'}"
        values = [MODEL_NAMES[line.result.model], data_name(line.result), line.budget, NORM_NAMES[line.norm]]
        values += [by_rate[rate].text() if rate in by_rate else "" for rate in rates]
        values.append(f"{chosen.mean:.2f} (lr {chosen.rate:g})" if chosen else "")
        values += [there, "" if line.difference is None else f"{line.difference:+.2f}"]
        lines.append(f"| {' | '.join(values)} |")
    lines += [
        "",
        "Test accuracy in percent after the last epoch: mean ± standard deviation over trainings with other seeds (ddof 1), their"
        " number in brackets. The best rate is chosen by the test accuracy itself, as in the paper, which flatters every norm.",
    ]
    return "\n".join(lines)


def _accuracy_csv(results: Iterable[ClassifierRun]) -> str:
    names = ["model", "data", "trained_on", "norm", "lr", "seeds", "mean", "std_ddof1", "diverged", "unfinished", "best",
        "published", "published_on", "difference"]  # fmt: skip
    found: list[list[object]] = []
    for line in _table_lines(results):
        for cell in line.cells:
            chosen, published = cell is line.chosen, line.published
            found.append(
                [
                    line.result.model, data_name(line.result), line.budget, cell.norm, f"{cell.rate:g}", len(cell.accuracies),
                    f"{cell.mean:.4f}" if cell.accuracies else "", "" if cell.deviation is None else f"{cell.deviation:.4f}",
                    cell.diverged, cell.unfinished, int(chosen), *(published[:2] if published else ("", "")),
                    f"{line.difference:.4f}" if chosen and line.difference is not None else "",
                ]
            )  # fmt: skip
    return csv_text(names, found)


def csv_text(names: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table of comma-separated values under its column ``names``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(lines)
    return text.getvalue()


def counts() -> dict[str, tuple[int, ...]]:
    """Trainable parameters under BN, SN and MSN of the networks in Table III, counted on the networks themselves; and of
    DenseNet-BC with the norm everywhere, which Table III has not."""
    return {
        "WGAN (discriminator)": tuple(
            trainable_parameters(Discriminator(channels=64, image_channels=3, image_size=32, norm=norm)) for norm in NORMS
        ),
        "3-layer CNN": tuple(trainable_parameters(cnn3(norm)) for norm in NORMS),
        "VGG-7": tuple(trainable_parameters(vgg7(norm)) for norm in NORMS),
        "DenseNet-BC": tuple(trainable_parameters(densenet_bc(norm, variant="published")) for norm in NORMS),
        "DenseNet-BC, norm everywhere": tuple(trainable_parameters(densenet_bc(norm)) for norm in NORMS),
    }


def _reason(difference: int, model: str, norm: str) -> str:
    """Why the published count is so much larger than the network's own."""
    if not difference:
        return ""
    if (model, norm) == ("WGAN (discriminator)", "mean_spectral"):
        return "one scalar is left unexplained"
    return f"{difference} scalars, one for each spectrally normalised layer of the authors' code, that are never trained"


def count_rows() -> list[tuple[str, str, int | None, int, int | None, str]]:
    """Table III: model, norm, published, ours, published minus ours, and why they differ."""
    found: list[tuple[str, str, int | None, int, int | None, str]] = []
    for model, ours in counts().items():
        for index, norm in enumerate(NORMS):
            published = PUBLISHED_COUNTS[model][index] if model in PUBLISHED_COUNTS else None
            difference = None if published is None else published - ours[index]
            reason = "not in the paper" if difference is None else _reason(difference, model, norm)
            found.append((model, norm, published, ours[index], difference, reason))
    return found


def count_table() -> str:
    """Table III as Markdown."""
    lines = ["| model | norm | published | ours | difference | why |", "|---|---|---|---|---|---|"]
    for model, norm, published, ours, difference, reason in count_rows():
        shown = ["" if number is None else f"{number:,}" for number in (published, ours, difference)]
        lines.append(f"| {model} | {NORM_NAMES[norm]} | {' | '.join(shown)} | {reason} |")
    lines += [
        "",
        "Trainable parameters. The published SN and MSN counts of DenseNet-BC are those of a network that keeps BatchNorm"
        " inside its 48 dense layers (28,832 parameters of BatchNorm); with the norm everywhere they are the last rows.",
    ]
    return "\n".join(lines)


def write_tables(results: Sequence[ClassifierRun], out: Path) -> str:
    """Writes table1 and table3 as .md and .csv into ``out``. Returns both as Markdown.

    Without ``results`` there is no Table I.
    """
    make_folder(out)
    names = ["model", "norm", "published", "ours", "difference", "why"]
    files = {"table3.md": count_table() + "\n", "table3.csv": csv_text(names, count_rows())}
    if results:
        files |= {"table1.md": accuracy_table(results) + "\n", "table1.csv": _accuracy_csv(results)}
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    return "\n".join(text for name, text in sorted(files.items()) if name.endswith(".md"))
