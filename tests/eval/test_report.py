"""Table II: rows, averages, refusals, and a page that a browser shows."""

import csv
import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from eval import __main__ as program
from eval import table2_data
from eval.differences import Group, difference
from eval.formatting import format_record
from eval.table2_cells import PUBLISHED, overview
from eval.table2_report import markdown, write_report
from gan.runs import scores
from gan.utils import cli
from tests.browser import browser

Make = Callable[..., Path]
BN = ["loss.name=wgan-gp", "model.discriminator.norm=batch"]
SN = ["model.discriminator.norm=spectral"]
MSN = ["model.discriminator.norm=mean_spectral"]


def table2(*arguments: object) -> int:
    return cli.run(lambda: program.main(["table2", *map(str, arguments)]))


def read(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "table2.csv").open() as file:
        return {(line["model"], line["protocol"]): line for line in csv.DictReader(file)}


def test_rows_come_in_the_papers_order_with_real_data_first(make: Make, tmp_path: Path) -> None:
    runs = [make("m", *MSN), make("w", *BN), make("s", *SN), make("c", "loss.name=wgan", "loss.clip=0.01", *BN[1:])]
    assert table2(*runs, "--out", tmp_path / "t") == 0
    lines = read(tmp_path / "t")
    paper = [model for model, protocol in lines if protocol == "paper"]
    assert paper == ["Real data", "WGAN-GP (with BN)", "SNGAN", "MSNGAN", "WGAN (with BN, clipped at 0.01)"]
    record = next(r for r in scores.read(runs[2]) if (r["protocol"], r["step"]) == ("paper", 4))
    assert float(lines["SNGAN", "paper"]["fid"]) == record["scores"]["fid"]["mean"]
    assert float(lines["SNGAN", "paper"]["fid_std"]) == record["scores"]["fid"]["std"]
    assert float(lines["Real data", "paper"]["fid"]) == record["floor"]["fid"]["mean"]
    assert float(lines["Real data", "paper"]["inception_score"]) == record["floor"]["inception_score"]["mean"]


def test_seeds_of_one_configuration_are_averaged_and_their_deviation_is_named(make: Make, tmp_path: Path) -> None:
    runs = [make(f"s{seed}", *SN, seed=seed) for seed in range(3)]
    assert table2(*runs, make("m", *MSN), "--out", tmp_path / "t") == 0
    each = [next(r for r in scores.read(run) if (r["protocol"], r["step"]) == ("paper", 4)) for run in runs]
    means = [record["scores"]["fid"]["mean"] for record in each]
    line = read(tmp_path / "t")["SNGAN", "paper"]
    assert float(line["fid"]) == pytest.approx(np.mean(means))
    assert float(line["fid_std"]) == pytest.approx(np.std(means, ddof=1))
    assert line["trainings"] == "3"
    text = (tmp_path / "t" / "table2.md").read_text()
    assert "over trainings with different seeds, ddof=1 (SNGAN)" in text
    assert "paper: ± is the deviation over 3 runs of one generator" not in text, "the recipe is the real one"
    assert "ddof=0 (Real data, MSNGAN)" in text


def test_runs_on_other_images_are_another_row_and_a_moved_set_is_the_same(make: Make, tmp_path: Path) -> None:
    runs = [make(f"s{seed}", *SN, f"data.path={seed}.zip", "data.name=folder", seed=seed) for seed in range(3)]
    for run, images in zip(runs, ("cats-40x3x32x32", "cats-40x3x32x32", "dogs-40x3x32x32"), strict=True):
        (run / "environment.json").write_text(json.dumps({"starts": [{"data": images}]}))
    assert table2(*runs, "--out", tmp_path / "t") == 0
    lines = read(tmp_path / "t")
    assert lines["SNGAN [images=cats-40x3x32x32]", "paper"]["trainings"] == "2"
    assert lines["SNGAN [images=dogs-40x3x32x32]", "paper"]["trainings"] == "1"
    assert lines["SNGAN [images=dogs-40x3x32x32]", "paper"]["fid_difference"] == "", "trained on other images: no verdict"


def test_rows_that_differ_from_sngan_are_marked_with_their_interval(make: Make, tmp_path: Path) -> None:
    far = [make(f"w{seed}", *BN, seed=seed, shift=2.0) for seed in (0, 1, 2)]
    sngan = [make(f"s{seed}", *SN, seed=seed) for seed in (0, 1)]
    near = [make(f"m{seed}", *MSN, seed=seed, shift=0.5) for seed in (0, 1)]
    alone = make("h", *SN, "loss.name=hinge", shift=0.5)
    assert table2(*far, *sngan, *near, alone, "--out", tmp_path / "t") == 0
    lines = read(tmp_path / "t")

    def group(runs: list[Path]) -> Group:
        entries = [
            next(r for r in scores.read(run) if (r["protocol"], r["step"]) == ("paper", 4))["scores"]["fid"] for run in runs
        ]
        return Group([e["mean"] for e in entries], [e["std"] / np.sqrt(3 - 1) for e in entries])

    expected = difference(group(near), group(sngan), lower_is_better=True)
    assert expected.verdict == "A is better" and expected.interval is not None
    line = lines["MSNGAN", "paper"]
    found = [float(line[f"fid_difference{end}"]) for end in ("", "_low", "_high")]
    assert found == pytest.approx([expected.difference, *expected.interval])
    text = (tmp_path / "t" / "table2.md").read_text()
    low, high = expected.interval
    assert f"| {expected.difference:+.2f} ({low:+.2f} to {high:+.2f}): better |" in text
    overview = {row.split(" | ")[0].strip("| "): row for row in text.split("paper: ±")[0].splitlines()}
    assert "(better)" in overview["MSNGAN"]
    assert "(worse)" in overview["WGAN-GP (with BN)"]
    assert "better" not in overview["SNGAN"] + overview["SNGAN (hinge)"]
    assert lines["SNGAN (hinge)", "paper"]["fid_difference_low"] == ""
    assert "no verdict: one side has a single training seed" in text
    assert "The averaged generator was scored" in (tmp_path / "t" / "table2.html").read_text()
    assert table2(alone, *near, "--out", tmp_path / "without") == 0
    assert "less that of SNGAN (hinge)" in (tmp_path / "without" / "table2.md").read_text(), "the first row"


def test_real_data_of_fewer_images_than_the_models_is_marked(make: Make, tmp_path: Path) -> None:
    assert table2(make("s", *SN), "--out", tmp_path / "t") == 0
    text = (tmp_path / "t" / "table2.md").read_text()
    assert "3 x 40 against 280 (the models: 3 x 40 against 400)" in text
    assert "paper: Real data was scored with fewer images than the models" in text


def test_runs_that_differ_in_more_than_the_seed_are_rows_of_their_own(make: Make, tmp_path: Path) -> None:
    assert table2(make("a", *SN), make("b", *SN, "optimizer.d_lr=0.001"), "--out", tmp_path / "t") == 0
    models = {model for model, _ in read(tmp_path / "t")}
    assert models == {"Real data", "SNGAN [optimizer.d_lr=0.0002]", "SNGAN [optimizer.d_lr=0.001]"}


def test_published_numbers_stand_only_beside_cifar10_under_the_literatures_network(make: Make) -> None:
    def text(*arguments: object, **keywords: str) -> str:
        return markdown(table2_data.collect([make(*arguments, **keywords)]))  # type: ignore[arg-type]

    cifar, weights = ["data.name=cifar10", "data.channels=3"], "6726825d0af5"
    known = text("a", *MSN, *cifar, extractor="inception", weights=weights)
    assert "| 7.39 ± 0.07 | 29.8 |" in known
    assert "paper: FID" in known
    others = [text("b", *MSN, *cifar), text("c", *MSN, extractor="inception", weights=weights)]
    others += [text("d", *MSN, *cifar, extractor="inception", weights="1")]
    dogs = make("dogs", *MSN, *cifar, extractor="inception", weights=weights)
    records = [json.loads(line) for line in (dogs / scores.FILE).read_text().splitlines()]
    for record in records:
        record["provenance"]["reference_name"] = "dogs"
    (dogs / scores.FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    others += [markdown(table2_data.collect([dogs]))]
    others += [text("e", *MSN, *cifar, "data.image_size=64", extractor="inception", weights=weights)]
    assert not any("29.8" in other for other in others)
    assert "paper: Frechet distance" in others[2], "other weights give no FID"
    assert PUBLISHED["SNGAN"] == (7.42, 0.08, 29.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["extractor"].update(weights_sha256="1"), "extractor.weights_sha256: 0 and 1"),
        (lambda p: p["protocol"].update(samples=7), "protocol.samples: 40 and 7"),
        (lambda p: p["reference"].update(count=7), "reference.count"),
        (lambda p: p.update(weights="raw"), "weights: ema and raw"),
        (lambda p: p.update(seed=3), "seed: 0 and 3"),
    ],
)
def test_scores_of_another_provenance_are_refused(
    change: Callable[[dict[str, dict[str, object]]], None],
    words: str,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [make("a", *SN), make("b", *MSN)]
    records = scores.read(runs[1])
    for record in records:
        change(record["provenance"])
    (runs[1] / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert table2(*runs, "--out", tmp_path / "t") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_scores_of_two_extractors_need_a_choice(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("a", *SN)
    other = make("b", *SN, extractor="inception")
    with (run / "scores.jsonl").open("a") as file:
        file.write((other / "scores.jsonl").read_text())
    assert table2(run, "--extractor", "efficientnet-lite0", "--out", tmp_path / "t") == 0
    assert table2(run, "--extractor", "inception", "--out", tmp_path / "t") == 0
    assert table2(run, other, "--extractor", "inception-pytorch-fid", "--out", tmp_path / "t") == 2
    told = capsys.readouterr().err
    assert (
        "no scores by inception-pytorch-fid yet, but has some by efficientnet-lite0 and inception under paper and quick" in told
    )
    assert "--extractor inception-pytorch-fid" in told


def test_runs_that_only_training_has_scored_are_told_what_they_have_and_how_to_score_them_so(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("a", *SN)
    records = [{**r, "source": "training"} for r in scores.read(run) if r["protocol"] == "quick"]
    (run / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert table2(run, "--out", tmp_path / "t") == 2
    told = capsys.readouterr().err
    assert "2 made during training by efficientnet-lite0 under quick" in told
    assert told.endswith(f"-m eval score {run} --protocol quick --extractor efficientnet-lite0\n")
    (run / "scores.jsonl").write_text("".join(json.dumps({**r, "source": "command"}) + "\n" for r in records))
    assert table2(run, "--out", tmp_path / "t") == 0
    (run / "scores.jsonl").unlink()
    assert table2(run, "--out", tmp_path / "t") == 2
    assert "no scores yet. Score it with: " in capsys.readouterr().err


def test_the_averaged_generators_scores_are_taken_where_runs_have_several(make: Make, tmp_path: Path) -> None:
    runs = [make("a", *SN), make("b", *MSN)]
    assert table2(*runs, "--out", tmp_path / "t") == 0
    before = read(tmp_path / "t")
    other = [{**r, "provenance": {**r["provenance"], "weights": "raw"}} for r in scores.read(runs[0])]
    for record in other:
        record["scores"]["fid"]["mean"] = 1e9
        scores.append(runs[0], record)
    assert table2(*runs, "--out", tmp_path / "t") == 0
    assert read(tmp_path / "t") == before


def test_a_training_counts_once_and_seeds_are_compared_at_one_step(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("a", *SN)
    assert table2(run, run / ".." / "a", "--out", tmp_path / "t") == 0
    assert read(tmp_path / "t")["SNGAN", "paper"]["trainings"] == "1"
    copy = make("copy", *SN)
    assert table2(run, copy, "--out", tmp_path / "t") == 2
    assert "the same training" in capsys.readouterr().err
    other = make("b", *SN, seed=1)
    records = [r for r in scores.read(other) if r["step"] == 0]
    (other / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert table2(run, other, "--out", tmp_path / "t") == 2
    assert "scores are of step 4 and 0" in capsys.readouterr().err


def test_curves_are_of_the_tables_extractor(make: Make) -> None:
    run = make("a", *SN)
    foreign = [r for r in scores.read(make("b", *SN, extractor="inception")) if r["protocol"] == "quick"]
    for step in range(9):  # an extractor that only watched the training, with more points
        scores.append(run, {**foreign[0], "source": "training", "step": step})
    table = table2_data.collect([run])
    assert table.extractor["extractor"] == "efficientnet-lite0"
    assert list(table.rows[0].runs[0].curve) == [0, 4]


def test_a_label_from_a_configuration_is_escaped(make: Make, tmp_path: Path) -> None:
    assert table2(make("a", *SN, "tracking.wandb_project='<script>alert(1)</script>'"), "--out", tmp_path / "t") == 0
    table = table2_data.collect([tmp_path / "runs" / "a"])
    hostile = table2_data.Table2Row("<script>alert(1)</script>", table.rows[0].runs)
    write_report(table2_data.Table(**{**vars(table), "rows": [hostile]}), tmp_path / "t")
    assert "<script" not in (tmp_path / "t" / "table2.html").read_text()


def test_the_page_needs_nothing_beside_it(make: Make, tmp_path: Path) -> None:
    assert table2(make("a", *SN), make("b", *MSN), "--out", tmp_path / "t") == 0
    page = (tmp_path / "t" / "table2.html").read_text()
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    assert page.count("<img") >= 4  # the curve, the real data, a grid or more for each run
    assert "ddof=0" in page
    assert "weights_sha256" in page


@pytest.mark.slow
def test_a_real_browser_shows_the_page(make: Make, tmp_path: Path) -> None:
    assert table2(make("a", *SN), make("b", *MSN), "--out", tmp_path / "t") == 0
    with browser(tmp_path / "profile") as shown:
        for width in (380, 1200):
            shown.open(tmp_path / "t" / "table2.html", width)
            assert shown.run("document.documentElement.scrollWidth") == width
            sizes = shown.run("[...document.images].map(image => image.naturalWidth)")
            assert len(sizes) >= 4 and all(sizes)
            assert shown.run("document.querySelectorAll('tbody tr').length") == 9
        assert shown.complaints == []


def test_a_name_with_dollar_signs_is_no_formula_and_the_legend_has_each_row(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = [make("a", *SN), make("b", *SN, seed=1), make("c", *SN, "training.initial=/$\\frac$/a")]
    lines = (runs[0] / scores.FILE).read_text().splitlines(keepends=True)
    (runs[0] / scores.FILE).write_text("".join(line for line in lines if json.loads(line)["step"] == 4))  # one point, no curve
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    assert table2(*runs, "--out", tmp_path / "t") == 0
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert len(labels) == 3
    assert "frac" in labels[0] + labels[1]


def test_a_checkpoint_is_not_the_run_that_has_its_scores(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table2(make("a") / "checkpoints" / "step-00000004", "--out", tmp_path / "t") == 2
    assert "a checkpoint. Give the folder of its run" in capsys.readouterr().err


def test_seconds_that_are_no_number_are_refused(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "seconds": NaN}\n')
    assert table2(run, "--out", tmp_path / "t") == 2
    assert "metrics.jsonl: a line is damaged" in capsys.readouterr().err


def test_of_several_references_the_common_one_of_the_most_trained_generators_is_shown(make: Make) -> None:
    run = make("a", *SN)
    records = scores.read(run)
    for record in [r for r in records if r["protocol"] == "paper" and r["step"] == 0]:
        for name in ("other one", "other two", "other three"):
            other = deepcopy(record)
            other["provenance"] |= {"reference_name": name}
            other["provenance"]["reference"]["images"] = {"content": name}
            scores.append(run, other)
    table = table2_data.collect([run])
    assert {(name, r["step"], r["provenance"]["reference"]["images"]["content"]) for name, r in table.records.items()} == {
        ("paper", 4, "x"), ("quick", 4, "x")
    }  # fmt: skip
    assert any("the runs also have some against other one, other three, other two" in note for note in table.notes)


def test_an_overview_names_the_steps_of_each_protocol_where_they_differ(make: Make) -> None:
    run = make("a", *SN)
    kept = [r for r in scores.read(run) if (r["protocol"], r["step"]) != ("quick", 4)]
    (run / scores.FILE).write_text("".join(json.dumps(record) + "\n" for record in kept))
    row = overview(table2_data.collect([run]))[1][-1]
    assert row[-1].startswith("paper: 1 training (seed 0), 4 steps") and "; quick: 1 training (seed 0), 0 steps" in row[-1]


def test_a_last_record_without_a_newline_is_kept(make: Make) -> None:
    run = make("a", *SN)
    whole = scores.read(run)
    (run / scores.FILE).write_bytes((run / scores.FILE).read_bytes().rstrip(b"\n"))
    assert scores.read(run) == whole
    scores.append(run, whole[0])
    assert scores.read(run) == [*whole, whole[0]]
    with (run / scores.FILE).open("ab") as file:
        file.write(b'{"step": 5, "sour')  # cut off by a kill
    scores.append(run, whole[0])
    assert scores.read(run) == [*whole, whole[0], whole[0]]


def test_every_value_stands_apart_from_its_name(make: Make) -> None:
    record = next(r for r in scores.read(make("a", *SN)) if r["protocol"] == "paper")
    for line in format_record("a", record).splitlines()[1:]:
        assert re.search(r"[^ ] +[-\d]", line), line
        assert not re.search(r"images\d", line), line
