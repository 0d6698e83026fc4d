"""The pages: every command parses, every path and link exists, the site builds without a warning."""

import argparse
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from gan.config import GanConfig, load_config
from gan.launch.grid import parse_values
from gan.utils.errors import UserError
from gan.utils.settings import flatten
from study.config import StudyConfig, load_study_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
SCRIPTS = {"msngan-train": "train.py", "msngan": "-m gan", "msngan-eval": "-m eval", "msngan-study": "-m study"}
MODULES = {
    "train.py": "train",
    **{name: f"{name}.__main__" for name in ("gan", "eval", "study", "benchmarks")},
    "study.causes": "study.causes",
}
COMMAND = re.compile(r"(\w+=\S* )*(python|accelerate|make|bash|msngan[\w-]*) ")


def commands() -> Iterator[tuple[str, str]]:
    """Yield (name of the page, command) for each command in a bash block, and for lines of text blocks that look like one."""
    for page in PAGES:
        for language, block in re.findall(r"```(bash|text)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n    ", "").splitlines():
                if language == "bash" or COMMAND.match(line):
                    yield page.name, line


class Parsed(Exception):
    """Raised in place of running a command whose arguments were accepted."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs stop once their arguments are parsed."""

    def stopping(parse: Any) -> Any:
        def stop(*args: Any, **kwargs: Any) -> None:
            raise Parsed(parse(*args, **kwargs))

        return stop

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))


def check(words: list[str]) -> None:
    """Raise an error for arguments that their program does not accept, or for settings that there are not."""
    while "=" in words[0]:
        words.pop(0)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets for word in words[1:] if "=" not in word)
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists()
    elif words[:2] == ["accelerate", "launch"]:
        parser = launch_command_parser()
        try:
            parser.parse_args(words[2:])
        except Parsed as parsed:
            options = parsed.args[0]
        script = ["-m", options.training_script] if options.module else [options.training_script]
        check(["python", *script, *options.training_script_args])
    else:
        words = ["python", *SCRIPTS[words[0]].split(), *words[1:]] if words[0] in SCRIPTS else words
        assert words[0] == "python"
        program, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
        with pytest.raises(Parsed) as parsed:
            importlib.import_module(MODULES[program]).main(arguments)
        options = parsed.value.args[0]
        settings = [word for word in arguments if "=" in word and word[0] != "-"]
        if values := getattr(options, "set", []):  # of a sweep: the first value of each key
            settings = [f"{key}={found[0]}" for key, found in parse_values(values).items()]
        check_settings(program, options, settings)


def check_settings(program: str, options: argparse.Namespace, settings: list[str]) -> None:
    """Load the configurations of a command with its settings; a configuration may be given by its name."""
    given = getattr(options, "config", [])
    for path in map(Path, given if isinstance(given, list) else [given]):
        path = path if path.suffix else Path("configs") / f"{path}.yaml"
        load = load_study_config if program.startswith("study") else load_config
        load(ROOT / path, settings)


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_is_accepted_by_its_program(page: str, command: str) -> None:
    check(shlex.split(command))


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize(
    "command", ["python -m gan sample RUN --ou x.png --cuont 3", "python train.py trainng.steps=3", "make trian"]
)
def test_a_mistyped_command_is_noticed(command: str) -> None:
    with pytest.raises((UserError, AssertionError)):
        check(shlex.split(command))


def make(*words: str) -> str:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


def test_make_help_lists_every_target_and_variable_of_the_makefile() -> None:
    text, told = (ROOT / "Makefile").read_text(), make("help")
    targets = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()
    variables = re.findall(r"^(\w+) \?=", text, re.MULTILINE)
    assert [target for target in targets if f"make {target} " not in told] == []
    assert [name for name in variables if f"[{name}=" not in told] == []


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (
            ["CONFIG=configs/folder.yaml", "SETTINGS=data.path=images seed=3"],
            "--config configs/folder.yaml data.path=images seed=3",
        ),
        (["CONFIG=cifar10_sngan"], "--config cifar10_sngan"),
        ([], "--config digits_msngan"),
    ],
)
def test_make_train_takes_a_configuration_and_settings(words: list[str], arguments: str) -> None:
    (command,) = (line for line in make("--dry-run", "train", *words).splitlines() if "train.py" in line)
    assert command.rstrip() == f".venv/bin/python train.py --page {arguments}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"\b(?:gan|eval|study|benchmarks|tests|configs)/[\w/]+\.(?:py|yaml)\b", text):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_the_table_names_the_configurations_that_there_are() -> None:
    table = (ROOT / "docs" / "training.md").read_text().partition("## Data")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_every_module_is_in_the_map_of_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    modules = [str(path.relative_to(ROOT)) for folder in ("gan", "eval", "study") for path in (ROOT / folder).rglob("[!_]*.py")]
    assert [module for module in modules if f"`{module}`" not in text] == []


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    text = hooks["PAGE"].read_text()
    assert hooks["with_settings"](text) == text, "run python docs/hooks.py"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_lists_every_setting(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    gans, _, classifiers = (tmp_path / "settings.html").read_text().partition('id="classifiers"')
    assert [key for key, _ in flatten(GanConfig()) if f"<code>{key}</code>" not in gans] == []
    assert [key for key, _ in flatten(StudyConfig()) if f"<code>{key}</code>" not in classifiers] == []
    assert "Change the loss" in (tmp_path / "contributing.html").read_text()
    assert not [page for page in tmp_path.glob("*.html") if re.search(r'(src|<link[^>]*href)="https?://', page.read_text())]
