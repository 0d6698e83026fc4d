"""The grid of a sweep: names, combinations, and the mistakes of its command."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import gan.__main__
from gan.config import load_config
from gan.launch.grid import name_of, parse_values, plan
from gan.utils import cli

DIGITS = Path(__file__).resolve().parents[2] / "configs" / "digits_msngan.yaml"


def sweep(*words: str) -> int:
    """Return the exit code of ``python -m gan sweep WORDS``, run in this process."""
    return cli.run(lambda: gan.__main__.main(["sweep", *words]))


def test_values_are_separated_by_commas_outside_of_brackets() -> None:
    assert parse_values(["a.b=1,2", "c.norms=[x,y],null"]) == {"a.b": ["1", "2"], "c.norms": ["[x,y]", "null"]}


def test_a_name_tells_what_differs_and_nothing_else() -> None:
    values = {"model.generator.norm": "batch", "model.discriminator.norm": "none", "optimizer.d_lr": "1e-4", "data.path": "a/b c"}
    path = Path("configs/digits.yaml")
    assert name_of(path, values, None, []) == "digits"
    assert name_of(path, values, 3, ["optimizer.d_lr"]) == "digits_d_lr-1e-4_seed3"
    assert (
        name_of(path, {"loss.name": "hinge", "data.name": "svhn"}, None, ["loss.name", "data.name"])
        == "digits_loss-hinge_data-svhn"
    )
    both = ["model.generator.norm", "model.discriminator.norm"]
    assert name_of(path, values, None, both) == "digits_generator.norm-batch_discriminator.norm-none"
    assert name_of(path, values, None, ["data.path"]) == "digits_path-a-b-c"


def test_a_name_too_long_for_a_file_system_ends_in_a_checksum() -> None:
    names = {name_of(Path("a.yaml"), {"key": "\u00fc" * 200 + end}, None, ["key"]) for end in ("a", "b")}
    assert len(names) == 2
    assert all(len(name.encode()) < 220 for name in names)


def test_every_combination_is_planned_once_and_seeds_vary_slowest(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("training: {steps: 7}\n")
    values = {"optimizer.d_lr": ["1e-4", "2e-4"], "loss.name": ["hinge"]}
    name = partial(name_of, varied=["optimizer.d_lr"])
    runs = plan([DIGITS, other], values, [0, 5], load_config, name, [f"run.dir={tmp_path}"])
    found = [(r.config.folder.name, r.config.training.steps, r.config.optimizer.d_lr, r.config.seed) for r in runs]
    steps = load_config(DIGITS).training.steps
    assert found[:2] == [("digits_msngan_d_lr-1e-4_seed0", steps, 1e-4, 0), ("digits_msngan_d_lr-2e-4_seed0", steps, 2e-4, 0)]
    assert found[2:4] == [("other_d_lr-1e-4_seed0", 7, 1e-4, 0), ("other_d_lr-2e-4_seed0", 7, 2e-4, 0)]
    assert [seed for *_, seed in found] == [0] * 4 + [5] * 4
    assert len(set(found)) == 8
    for run in runs:
        assert load_config(Path(run.words[1]), run.words[2:]) == run.config, "the words make the settings"


MISTAKES = {
    "no configuration": ([], "required: --config"),
    "an unknown configuration": (["--config", "digit_msngan"], "neither a file nor the name"),
    "no value": (["--config", "digits_msngan", "--set", "seed"], "expected KEY=V1,V2"),
    "an empty value": (["--config", "digits_msngan", "--set", "optimizer.d_lr=1e-4,"], "expected KEY=V1,V2"),
    "a seed as a value": (["--config", "digits_msngan", "--set", "seed=1,2"], "Use --seeds"),
    "a name": (["--config", "digits_msngan", "--set", "run.name=x"], "Use --seeds or run.dir"),
    "a key twice": (["--config", "digits_msngan", "--set", "loss.name=wgan", "--set", "loss.name=hinge"], "is given twice"),
    "a value twice": (["--config", "digits_msngan", "--set", "loss.name=hinge,hinge"], "a value is given twice"),
    "an unknown key": (["--config", "digits_msngan", "--set", "optimizer.rate=1,2"], "is not a setting"),
    "a wrong type": (["--config", "digits_msngan", "--set", "training.steps=1,many"], "training.steps"),
    "a value out of range": (["--config", "digits_msngan", "--set", "optimizer.d_lr=1,-1"], "optimizer.d_lr=-1.0"),
    "a wrong seed": (["--config", "digits_msngan", "--seeds", "one"], "whole number"),
    "the same run twice": (["--config", "digits_msngan", "--seeds", "1", "1"], "2 runs of the sweep would write to it"),
    "no process": (["--config", "digits_msngan", "--at-once", "0"], "whole number from 1 up"),
    "two actions": (["--config", "digits_msngan", "--status", "--dry-run"], "not allowed with"),
    "submitting nothing": (["--config", "digits_msngan", "--submit"], "--submit: only with --slurm"),
    "nodes without Slurm": (["--config", "digits_msngan", "--nodes", "2"], "--nodes: only with --slurm"),
    "a file in place of the folder": (["--config", "digits_msngan", "--slurm", "--set", "run.dir={file}"], "cannot be"),
    "Slurm is not here": (
        ["--config", "digits_msngan", "--slurm", "--submit", "--set", "run.dir={folder}"],
        "not installed here",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_line_and_writes_no_run(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    (tmp_path / "file").write_text("")
    words, expected = MISTAKES[mistake]
    assert sweep(*(word.format(file=tmp_path / "file", folder=tmp_path / "folder") for word in words)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_not_started_by_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert sweep("--config", "digits_msngan") == 2
    assert "give --processes 2" in capsys.readouterr().err


def test_a_dry_run_shows_the_grid_and_its_cost_and_writes_nothing(
    run: Path, tiny: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.rename(tmp_path / "digits_msngan")  # the finished run of 4 steps
    words = [word for word in tiny("training.steps=4", "checkpoint.every=2", "samples.every=2") if not word.startswith("run.")]
    grid = ["--config", str(DIGITS), "--set", *words, f"run.dir={tmp_path}"]
    assert sweep(*grid, "--dry-run") == 0
    assert "1 run, 0 to train: 0 steps" in capsys.readouterr().out
    damaged = tmp_path / "digits_msngan" / "metrics.jsonl"
    whole = damaged.read_bytes()
    damaged.write_text("{\n")
    assert sweep(*grid, "--dry-run") == 0
    assert "metrics.jsonl: a line is damaged" in capsys.readouterr().out
    damaged.write_bytes(whole)
    longer = [word.replace("training.steps=4", "training.steps=10,20") for word in grid]
    assert sweep(*longer, "--seeds", "0", "1", "--dry-run") == 0
    assert "4 runs, 4 to train: 60 steps" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["digits_msngan"]
