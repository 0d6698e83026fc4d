"""Tables I and III of the paper as Markdown and CSV: published values beside measured ones."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from torch import nn

from gan.models.dcgan import Discriminator, trainable_parameters
from gan.runs.grouping import differing_settings
from gan.utils.files import make_folder, write_atomically
from gan.utils.tables import csv_text, markdown_table
from study.config import MODEL_NAMES, NORM_NAMES, NORMS
from study.models import cnn3, densenet_bc, vgg7
from study.results import ClassifierRun, ComparableRuns, comparable_runs

# Table I of the paper: data set, and test accuracy in percent by norm.
PUBLISHED_ACCURACY = {
    "cnn3": ("mnist", {"batch": 98.28, "spectral": 89.55, "mean_spectral": 96.71}),
    "vgg7": ("svhn", {"batch": 88.56, "spectral": 78.43, "mean_spectral": 90.86}),
    "densenet_bc": ("cifar10", {"batch": 92.27, "spectral": 90.52, "mean_spectral": 91.65}),
}
# Table III of the paper: trainable parameters under BN, SN and MSN.
PUBLISHED_COUNTS = {
    "WGAN (discriminator)": (2_938_689, 2_935_873, 2_937_282),
    "3-layer CNN": (103_562, 103_406, 103_486),
    "VGG-7": (438_314, 437_168, 437_744),
    "DenseNet-BC": (1_009_730, 1_007_608, 1_008_670),
}


@dataclass(frozen=True)
class SeedStatistics:
    """Test accuracies of the runs of one model, norm and learning rate, over seeds."""

    norm: str
    rate: float
    accuracies: tuple[float, ...]  # in percent, of the complete runs
    diverged: int
    unfinished: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (ddof 1); None for a single seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def complete(self) -> bool:
        """Whether every seed's run is complete."""
        return bool(self.accuracies) and not self.diverged and not self.unfinished

    def text(self) -> str:
        """Return the table cell: mean, deviation and number of seeds, then the runs without an accuracy."""
        parts = []
        if self.accuracies:
            spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
            parts.append(f"{self.mean:.2f}{spread} ({len(self.accuracies)})")
        if self.diverged:
            parts.append(f"{self.diverged} diverged")
        if self.unfinished:
            parts.append(f"{self.unfinished} unfinished")
        return ", ".join(parts)


def cells(compared: ComparableRuns) -> list[SeedStatistics]:
    """Return the statistics of each norm and learning rate, in the order of NORM_NAMES, the largest rate first."""
    found = []
    for (norm, rate), runs in compared.runs.items():
        accuracies = tuple(100 * run.accuracy for run in runs if run.complete and run.failure is None)
        diverged = sum(run.failure is not None for run in runs)
        found.append(SeedStatistics(norm, rate, accuracies, diverged, len(runs) - len(accuracies) - diverged))
    return sorted(found, key=lambda cell: (list(NORM_NAMES).index(cell.norm), -cell.rate))


def best(found: Sequence[SeedStatistics]) -> SeedStatistics | None:
    """Return the complete cell with the best mean, which the paper reports of a model and norm; None without one."""
    return max((cell for cell in found if cell.complete), key=lambda cell: cell.mean, default=None)


def data_name(run: ClassifierRun) -> str:
    """Return the name of the run's data set, or of the folder or file of its images."""
    data = run.config.data
    if data.name != "folder":
        return data.name
    path = Path(data.path or "")
    return path.name if path.suffix == ".zip" else "/".join(path.parts[-2:])


def budget(compared: ComparableRuns, others: Sequence[ComparableRuns]) -> str:
    """Return the number of images and epochs, and the other settings that differ from those of runs of the same model."""
    config, images = compared.first.config, compared.first.trained_on
    parts = [f"{images:,} images"] if images is not None else []
    parts.append(f"{config.training.epochs:g} epochs")
    if config.data.test_images is not None:
        tested = compared.first.tested_on
        parts.append(f"tested on {config.data.test_images if tested is None else tested:,}")
    shown = {"training.epochs", "data.train_images", "data.test_images", "images"}
    same_model = [other.settings for other in others if other.first.model == compared.first.model]
    differing = differing_settings(compared.settings, same_model)
    return ", ".join(parts + [f"{key}={value}" for key, value in differing.items() if key not in shown])


def _set_name(run: ClassifierRun) -> str:
    """Return the name of the run's data set; of a folder or zip its own or that of the folder around it, without "train"."""
    data = run.config.data
    if data.name != "folder":
        return data.name
    path = Path(data.path or "")
    names = [name.lower().removesuffix(".zip").removesuffix("train").rstrip("-_") for name in (path.name, path.parent.name)]
    return names[0] or names[1]


class AccuracyRow:
    """One model and norm of Table I."""

    def __init__(self, run: ClassifierRun, budget: str, cells: Sequence[SeedStatistics]) -> None:
        """``run`` is any run of the row, since all share model and data."""
        self.model, self.norm = run.model, cells[0].norm
        self.data, self.budget, self.cells, self.chosen = data_name(run), budget, cells, best(cells)
        self.published_on, accuracies = PUBLISHED_ACCURACY[run.config.model.name]
        self.published = accuracies.get(self.norm.removesuffix("_projected"))  # None: not in Table I
        self.same_data = _set_name(run) == self.published_on

    @property
    def difference(self) -> float | None:
        """The best measured accuracy minus the published one, in points; None for other data."""
        return self.chosen.mean - self.published if self.chosen and self.published and self.same_data else None


def _accuracy_rows(runs: Iterable[ClassifierRun]) -> list[AccuracyRow]:
    groups = comparable_runs(runs)
    return [
        AccuracyRow(compared.first, budget(compared, groups), list(own))
        for compared in groups
        for _, own in groupby(cells(compared), key=lambda cell: cell.norm)
    ]


def accuracy_table(runs: Iterable[ClassifierRun]) -> str:
    """Return Table I as Markdown: test accuracy in percent by learning rate, the best and the published one."""
    rows = _accuracy_rows(runs)
    rates = sorted({cell.rate for row in rows for cell in row.cells}, reverse=True)
    head = ["model", "data", "trained on", "norm", *(f"lr {rate:g}" for rate in rates), "best", "published", "difference"]
    lines = []
    for row in rows:
        texts = {cell.rate: cell.text() for cell in row.cells}
        other_data = "" if row.same_data else f" on {row.published_on}"
        lines.append([
            MODEL_NAMES[row.model], row.data, row.budget, NORM_NAMES[row.norm], *map(texts.get, rates),
            row.chosen and f"{row.chosen.mean:.2f} (lr {row.chosen.rate:g})",
            row.published and f"{row.published:.2f}{other_data}",
            None if row.difference is None else f"{row.difference:+.2f}",
        ])  # fmt: skip
    return (
        f"{markdown_table(head, lines)}\n\n"
        "Test accuracy in percent after the last epoch: mean ± standard deviation over trainings with other seeds (ddof 1), their"
        " number in brackets. The best rate is chosen by the test accuracy itself, as in the paper, which flatters every norm."
    )


def _accuracy_csv(runs: Iterable[ClassifierRun]) -> str:
    """Return Table I as CSV, one line a model, norm and learning rate."""
    names = ["model", "data", "trained_on", "norm", "lr", "seeds", "mean", "std_ddof1", "diverged", "unfinished", "best",
        "published", "published_on", "difference"]  # fmt: skip
    lines: list[list[object]] = []
    for row in _accuracy_rows(runs):
        for cell in row.cells:
            chosen = cell is row.chosen
            lines.append([
                row.model, row.data, row.budget, cell.norm, f"{cell.rate:g}", len(cell.accuracies),
                f"{cell.mean:.4f}" if cell.accuracies else None, None if cell.deviation is None else f"{cell.deviation:.4f}",
                cell.diverged, cell.unfinished, int(chosen), row.published, row.published and row.published_on,
                f"{row.difference:.4f}" if chosen and row.difference is not None else None,
            ])  # fmt: skip
    return csv_text(names, lines)


def _epochs_csv(runs: Iterable[ClassifierRun]) -> str:
    """Return the test accuracy of each run after each of its epochs as CSV."""
    groups = comparable_runs(runs)
    lines = [
        [run.model, data_name(run), budget(group, groups), norm, f"{rate:g}", run.config.seed,
         f"{test['epoch']:g}", f"{test['test_accuracy']:.4f}"]
        for group in groups
        for (norm, rate), same in group.runs.items()
        for run in same
        for test in run.tests
    ]  # fmt: skip
    return csv_text(["model", "data", "trained_on", "norm", "lr", "seed", "epoch", "test_accuracy"], lines)


def count_rows() -> list[tuple[str, str, int | None, int, int | None, str]]:
    """Return Table III: model, norm, published count, our count, published minus ours, and the reason of the difference.

    The parameters are counted on the networks themselves. The last network, with the norm everywhere, is not in Table III.
    """
    networks: dict[str, Callable[..., nn.Module]] = {
        "WGAN (discriminator)": partial(Discriminator, channels=64, image_channels=3, image_size=32),
        "3-layer CNN": cnn3,
        "VGG-7": vgg7,
        "DenseNet-BC": partial(densenet_bc, variant="published"),
        "DenseNet-BC, norm everywhere": densenet_bc,
    }
    found: list[tuple[str, str, int | None, int, int | None, str]] = []
    for model, build in networks.items():
        for norm, published in zip(NORMS, PUBLISHED_COUNTS.get(model, (None, None, None)), strict=True):
            ours = trainable_parameters(build(norm=norm))
            difference = None if published is None else published - ours
            found.append((model, norm, published, ours, difference, _reason(difference, model, norm)))
    return found


def _reason(difference: int | None, model: str, norm: str) -> str:
    """Return why the published count is larger than the network's own by ``difference``."""
    if difference is None:
        return "not in the paper"
    if not difference:
        return ""
    if (model, norm) == ("WGAN (discriminator)", "mean_spectral"):
        return "one scalar is left unexplained"
    return f"{difference} scalars, one for each spectrally normalised layer of the authors' code, that are never trained"


def count_table() -> str:
    """Return Table III as Markdown."""
    lines = [
        (model, NORM_NAMES[norm], *(None if number is None else f"{number:,}" for number in numbers), reason)
        for model, norm, *numbers, reason in count_rows()
    ]
    return (
        f"{markdown_table(['model', 'norm', 'published', 'ours', 'difference', 'why'], lines)}\n\n"
        "Trainable parameters. The published SN and MSN counts of DenseNet-BC are those of a network that keeps BatchNorm"
        " inside its 48 dense layers (28,832 parameters of BatchNorm); with the norm everywhere they are the last rows."
    )


def write_tables(runs: Sequence[ClassifierRun], out: Path) -> str:
    """Write table1 and table3 as .md and .csv into ``out``, and epochs.csv with the accuracies after each epoch.

    Return both tables as Markdown. Without ``runs`` there is Table III alone.
    """
    make_folder(out)
    names = ["model", "norm", "published", "ours", "difference", "why"]
    files = {"table3.md": count_table() + "\n", "table3.csv": csv_text(names, count_rows())}
    if runs:
        files |= {"table1.md": accuracy_table(runs) + "\n", "table1.csv": _accuracy_csv(runs), "epochs.csv": _epochs_csv(runs)}
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    return "\n".join(text for name, text in sorted(files.items()) if name.endswith(".md"))
