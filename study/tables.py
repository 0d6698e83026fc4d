"""Tables I and III of the paper, published beside measured, as Markdown and CSV."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gan.files import write_atomically
from gan.networks import Discriminator, trainable_parameters
from gan.settings import flatten
from study.networks import cnn3, densenet_bc, vgg7
from study.results import Result

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

    model: str
    data: str
    norm: str
    rate: float
    epochs: float
    images: int  # trained on
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


def data_name(result: Result) -> str:
    """The data set's name, or that of the folder or file that it came from."""
    data = result.config.data
    return Path(data.path or "").name if data.name == "folder" else data.name


def _trained_on(result: Result) -> int:
    """Number of images, as the run's record of its start tells."""
    starts = json.loads((result.folder / "environment.json").read_text())["starts"]
    return int(starts[-1]["data"].rpartition("-")[2].partition("x")[0])


def cells(results: Iterable[Result]) -> list[Cell]:
    """Runs that differ by their seed alone, together; in the order of models, data, norms and rates."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        ignored = {*result.config.CHANGEABLE, "seed"} - {"training.epochs", "data.path"}
        key = repr([item for item in flatten(result.config) if item[0] not in ignored])
        groups.setdefault(key, []).append(result)
    found = []
    for group in groups.values():
        first = group[0]
        done = [r for r in group if r.complete and r.failure is None]
        diverged = sum(r.failure is not None for r in group)
        found.append(
            Cell(
                first.model, data_name(first), first.config.model.norm, first.config.optimizer.lr, first.config.training.epochs,
                _trained_on(first), tuple(100 * r.accuracy for r in done), diverged, len(group) - len(done) - diverged,
            )
        )  # fmt: skip
    order = list(NORM_NAMES)
    return sorted(
        found, key=lambda c: (list(MODEL_NAMES).index(c.model), c.data, c.images, c.epochs, order.index(c.norm), -c.rate)
    )


def best(row: Sequence[Cell]) -> Cell | None:
    """Of the cells of one model and norm, the one with the best mean, as the paper reports; None where none is whole."""
    return max((cell for cell in row if cell.whole), key=lambda cell: cell.mean, default=None)


def _published(cell: Cell) -> tuple[float, bool] | None:
    """What Table I has for the model and norm, and whether it is for the same data; None where it has nothing."""
    data, accuracies = PUBLISHED_ACCURACY.get(cell.model.partition(",")[0], ("", {}))
    if cell.norm not in accuracies:
        return None
    return accuracies[cell.norm], cell.data.lower().replace("-", "").replace("_", "").startswith(data)


def _rows(found: Sequence[Cell]) -> list[list[Cell]]:
    rows: dict[tuple[str, str, int, float, str], list[Cell]] = {}
    for cell in found:
        rows.setdefault((cell.model, cell.data, cell.images, cell.epochs, cell.norm), []).append(cell)
    return list(rows.values())


def accuracy_table(results: Iterable[Result]) -> str:
    """Table I as Markdown: each learning rate's test accuracy in percent, the best, and what was published."""
    found = cells(results)
    rates = sorted({cell.rate for cell in found}, reverse=True)
    head = ["model", "data", "trained on", "norm", *(f"lr {rate:g}" for rate in rates), "best", "published", "difference"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in _rows(found):
        first, chosen, published = row[0], best(row), _published(row[0])
        by_rate = {cell.rate: cell for cell in row}
        there = "" if published is None else f"{published[0]:.2f}"
        if published is not None and not published[1]:
            there += f" on {PUBLISHED_ACCURACY[first.model.partition(',')[0]][0]}"
        difference = f"{chosen.mean - published[0]:+.2f}" if chosen and published and published[1] else ""
        lines.append(
            "| "
            + " | ".join(
                [
                    MODEL_NAMES[first.model],
                    first.data,
                    f"{first.images:,} images, {first.epochs:g} epochs",
                    NORM_NAMES[first.norm],
                    *(by_rate[rate].text() if rate in by_rate else "" for rate in rates),
                    f"{chosen.mean:.2f} (lr {chosen.rate:g})" if chosen else "",
                    there,
                    difference,
                ]
            )
            + " |"
        )
    lines += [
        "",
        "Test accuracy in percent after the last epoch: mean ± standard deviation over trainings with other seeds (ddof 1), their"
        " number in brackets. The best rate is chosen by the test accuracy itself, as in the paper, which flatters every norm.",
    ]
    return "\n".join(lines)


def _accuracy_csv(found: Sequence[Cell]) -> str:
    names = ["model", "data", "images", "epochs", "norm", "lr", "seeds", "mean", "std_ddof1", "diverged", "unfinished", "best",
        "published", "published_on_same_data"]  # fmt: skip
    rows: list[list[object]] = []
    for row in _rows(found):
        chosen = best(row)
        for cell in row:
            published = _published(cell)
            rows.append(
                [
                    cell.model, cell.data, cell.images, f"{cell.epochs:g}", cell.norm, f"{cell.rate:g}", len(cell.accuracies),
                    f"{cell.mean:.4f}" if cell.accuracies else "", "" if cell.deviation is None else f"{cell.deviation:.4f}",
                    cell.diverged, cell.unfinished, int(cell is chosen), published[0] if published else "",
                    int(published[1]) if published else "",
                ]
            )  # fmt: skip
    return csv_text(names, rows)


def csv_text(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of comma-separated values under its column ``names``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
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
    rows: list[tuple[str, str, int | None, int, int | None, str]] = []
    for model, ours in counts().items():
        for index, norm in enumerate(NORMS):
            published = PUBLISHED_COUNTS[model][index] if model in PUBLISHED_COUNTS else None
            difference = None if published is None else published - ours[index]
            reason = "not in the paper" if difference is None else _reason(difference, model, norm)
            rows.append((model, norm, published, ours[index], difference, reason))
    return rows


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


def write_tables(results: Sequence[Result], out: Path) -> str:
    """Writes table1 and table3 as .md and .csv into ``out``. Returns both as Markdown.

    Without ``results`` there is no Table I.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = ["model", "norm", "published", "ours", "difference", "why"]
    files = {"table3.md": count_table() + "\n", "table3.csv": csv_text(names, count_rows())}
    if results:
        files |= {"table1.md": accuracy_table(results) + "\n", "table1.csv": _accuracy_csv(cells(results))}
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    return "\n".join(text for name, text in sorted(files.items()) if name.endswith(".md"))
