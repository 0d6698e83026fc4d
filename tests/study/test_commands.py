"""Mistakes on the command line, dry runs and the configurations of the study."""

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from study.config import load_study_config
from tests.study.common import DIGITS, ROOT, TINY, study, train


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--config", str(DIGITS), "model.nrom=batch"], "nrom"),
        (["train", "--config", str(DIGITS), "model.variant=published"], "only densenet_bc"),
        (["train", "--config", str(DIGITS), "optimizer.lr=0"], "positive"),
        (["train", "--config", str(DIGITS), "probes.layers=[9]"], "no layer 9; there are 4"),
        (["train", "--config", str(DIGITS), "probes.layers=[0]"], "numbered from 1"),
        (["train", "--config", str(DIGITS), "probes.layers=[]"], "each layer once"),
        (["tables", "--out", "a.png"], "cannot be created"),
        (["tables", "--out", "a.png/sub"], "cannot be created"),
        (["train", "--config", str(DIGITS), "data.image_size=1", "model.name=vgg7"], "too small"),
        (["train", "--config", str(DIGITS), "data.name=folder", "data.path=FLAT.zip"], "no classes"),
        (["train", "--config", str(DIGITS), "training.batch_size=1"], "at least 2"),
        (["train", "--config", str(DIGITS), "run.name=gan"], "is not a setting"),
        (["sweep", "--config", str(DIGITS), "--rates", "fast"], "learning rate"),
        (["sweep", "--config", str(DIGITS), "--norms", "layer"], "invalid choice"),
        (["tables", "nowhere", "--out", "out"], "no run"),
        (["tables", "seed=1", "--out", "out"], "takes no settings"),
        (["tables", "lr=0.1", "--out", "lr=0.2"], "lr=0.1: no run"),
        (["figures", "runs", "--out", "out"], "no run"),
        (["sing"], "invalid choice"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("FLAT.zip", "w") as archive:
        Image.new("L", (28, 28)).save("a.png")
        for index in range(10):
            archive.write("a.png", f"{index}.png")
    (tmp_path / "runs" / "gan").mkdir(parents=True)
    (tmp_path / "runs" / "gan" / "config.yaml").write_text("model: {generator: {norm: batch}}\n")
    (tmp_path / "lr=0.1").mkdir()
    if words[0] == "figures":
        (tmp_path / "runs" / "gan" / "config.yaml").unlink()
    assert study(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_a_dry_run_describes_the_run_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study("train", "--config", str(DIGITS), "--dry-run", f"run.dir={tmp_path / 'runs'}") == 0
    told = capsys.readouterr().out
    assert "103,482 parameters (cnn3, mean_spectral)" in told
    assert "113, 5 epochs of 1,438 images" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_commands_of_the_docs_in_their_order_make_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run of ``train`` and one of ``sweep`` have equal settings: they are one training."""
    common = ["--config", str(DIGITS), *TINY, f"run.dir={tmp_path / 'runs'}"]
    assert study("train", *common) == 0
    assert study("sweep", *common, "--norms", "mean_spectral", "--rates", "0.001") == 0
    capsys.readouterr()
    assert study("tables", str(tmp_path / "runs"), "--out", str(tmp_path / "tables")) == 0
    shown = capsys.readouterr()
    (warning,) = shown.err.splitlines()
    assert "are the same training (equal settings, seed 0): it counts once" in warning
    (line,) = (line for line in shown.out.splitlines() if line.startswith("| 3-layer CNN | digits"))
    assert "(1)" in line


def test_a_dry_run_of_a_run_that_is_refused_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path)
    words = ["train", "--config", str(run / "config.yaml"), f"run.dir={tmp_path}", "run.name=run", "--dry-run"]
    assert study(*words) == 0
    assert "resumes from:" in capsys.readouterr().out
    assert study(*words, "optimizer.lr=0.5") == 2
    shown = capsys.readouterr()
    assert "optimizer.lr: " in shown.err.splitlines()[-1]
    assert "writes to:" in shown.out


def test_ready_configurations_load_under_their_own_name() -> None:
    for path in (ROOT / "configs" / "study").glob("*.yaml"):
        assert load_study_config(path).run.name == path.stem
