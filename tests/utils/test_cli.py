"""What all programs share: terminals and pipes that show less, a Python without packages, ~, --out, --device."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

import eval.__main__
import gan.__main__
import study.__main__
from gan.utils import cli, distributed
from gan.utils.devices import usable_device
from gan.utils.errors import UserError
from gan.utils.files import cache_root
from gan.utils.progress import progress
from tests.conftest import command

ROOT = Path(__file__).parents[2]
PROGRAMS = [["train.py"], ["-m", "gan"], ["-m", "eval"], ["-m", "study"]]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda words: words[-1])
def test_a_python_without_the_packages_gets_one_line(program: list[str]) -> None:
    # -S leaves out the folder of installed packages.
    done = subprocess.run([sys.executable, "-S", *program], cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"error: {sys.executable} lacks the packages torch, ")
    assert "Run `make setup` in the checkout" in line


def test_a_python_without_the_packages_may_still_import_the_package() -> None:
    subprocess.run([sys.executable, "-S", "-c", "import gan"], cwd=ROOT, check=True)


@pytest.mark.slow
def test_what_an_encoding_cannot_show_is_escaped() -> None:
    words = [sys.executable, "train.py", "run.name=größe", "--dry-run"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"gr\xf6\xdfe" in done.stdout
    done = subprocess.run([*words, "data.name=größe"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(r"error: data.name=gr\xf6\xdfe: expected one of")


@pytest.mark.slow
@pytest.mark.parametrize(("closed", "words", "code"), [("stdout", ["--dry-run"], 141), ("stderr", ["training.step=3"], 2)])
def test_a_pipe_that_nobody_reads_ends_the_program_without_a_traceback(closed: str, words: list[str], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writing}
    process = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, text=True, **streams)
    os.close(writing)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert (output or "", errors or "") == ("", "")


def test_of_processes_that_are_not_connected_one_reports_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert command(["training.step=3"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (gan.__main__.main, ["sample", "~/none", "--out", "a.png"]),
        (gan.__main__.main, ["export", "~/none", "--out", "a"]),
        (eval.__main__.main, ["score", "~/none", "--protocol", "quick"]),
        (eval.__main__.main, ["images", "~/none", "digits"]),
        (eval.__main__.main, ["reference", "~/none", "--out", "a.npz"]),
        (eval.__main__.main, ["table2", "~/none", "--out", "a"]),
        (study.__main__.main, ["tables", "~/none", "--out", "a"]),
        (study.__main__.main, ["train", "--config=~/none"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_tilde_is_the_home_folder_in_every_program(
    program, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cli.run(lambda: program(words)) == 2
    assert f"{tmp_path}/home/none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_results_go_to_the_home_folder_where_out_says_so(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.run(lambda: gan.__main__.main(["sample", str(finished_run), "--out", "~/a.png"])) == 0
    assert (tmp_path / "a.png").is_file()


@pytest.mark.slow
def test_a_program_tells_what_it_took_and_what_it_wrote(finished_run: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "gan", "sample", str(finished_run), "--out", str(tmp_path / "a.png")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    took = f"{finished_run}/checkpoints/step-00000004: step 4, ema weights"
    assert done.stderr.splitlines() == [took, f"wrote {tmp_path}/a.png"]


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without an entry in the list of users, as of ``docker run --user 12345``."""
    for name in ("HOME", "MSNGAN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    from gan.utils import files

    files._say_that_nothing_is_cached.cache_clear()


@pytest.mark.usefixtures("no_home")
def test_without_a_home_folder_nothing_is_cached_which_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cache_root() is None
    score = ["score", str(finished_run), "--protocol", "quick", "--extractor", "efficientnet-lite0"]
    from tests.small import scale_down

    scale_down(monkeypatch)
    monkeypatch.setattr("gan.runs.scores.append", lambda *_: None)  # the run is not to be changed
    assert cli.run(lambda: eval.__main__.main(score)) == 0
    assert capsys.readouterr().err.count("no home folder") <= 1
    with pytest.raises(UserError, match=r"^~/x: ~ has no home folder here\."):
        cli.find_config("~/x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gpu", "meta", "tpu9", "cuda:99", "", "cpu:-3"])
def test_a_device_that_is_not_here_is_refused_in_words(name: str) -> None:
    with pytest.raises(UserError, match=r"not a device of this machine, which has cpu"):
        usable_device(name)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "{run}", "--out", "{out}.png"],
        ["sample", "{run}", "--out", "{out}.gif", "--animate"],
        ["sample", "{run}", "--out", "{out}.zip", "--single", "--count", "2"],
        ["reference", "digits", "--out", "{out}.npz", "--extractor", "efficientnet-lite0"],
    ],
    ids=lambda words: words[3],
)
def test_a_file_that_exists_is_replaced_by_force_only(
    words: list[str], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.small import scale_down

    scale_down(monkeypatch)
    program = eval.__main__.main if words[0] == "reference" else gan.__main__.main
    words = [word.format(run=finished_run, out=tmp_path / "a") for word in words]
    out = Path(words[3])
    out.write_text("years of work")
    assert cli.run(lambda: program(words)) == 2
    assert f"--out {out}: exists. Choose another name, or add --force to replace it." in capsys.readouterr().err
    assert out.read_text() == "years of work"
    assert cli.run(lambda: program([*words, "--force"])) == 0
    assert b"years of work" not in out.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "words", "code"),
    [
        ("2>/dev/full", "training.step=3", 2),
        (">/dev/full", "--dry-run", 2),
        (">&-", "--dry-run", 0),
        ("2>&-", "training.step=3", 2),
    ],
)
def test_a_stream_that_is_full_or_closed_changes_no_exit_code_of_another_mistake(redirection: str, words: str, code: int) -> None:
    """The disk of a log may be full, and a service may start a program without streams."""
    line = f"{sys.executable} train.py {words} {redirection}"
    found = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, "Traceback" in found.stderr) == (code, False)
    if redirection == ">/dev/full":
        assert found.stderr.endswith("No space left on device.\n")


def test_messages_and_progress_go_on_where_the_disk_of_stderr_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 (closing it fails, too)
    monkeypatch.setattr(sys, "stderr", full)

    def work() -> int:
        logging.getLogger("gan").warning("a message")
        return sum(1 for _ in progress(3, "work", items=range(3)))

    assert cli.run(work) == 3
    monkeypatch.undo()
    with suppress(OSError):
        full.close()


@pytest.mark.parametrize("words", [["--config", "a" * 300], ["data.name=folder", "data.path=" + "a" * 300, "--dry-run"]])
def test_a_name_that_is_too_long_costs_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([*words, f"run.dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.endswith("File name too long.\n")


def test_a_folder_hides_no_configuration_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits_msngan").mkdir()  # a run of it with run.dir=.
    monkeypatch.chdir(tmp_path)
    assert cli.find_config("digits_msngan").is_file()


def test_a_cpu_by_number_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        distributed, "Accelerator", lambda **options: asked.append(options["cpu"]) or SimpleNamespace(num_processes=1)
    )
    for device in ("cpu:0", "cpu", None):
        distributed.make_accelerator(device)
    assert asked == [True, True, False]


def test_a_checkout_that_is_not_installed_has_no_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cli, "version", missing)
    with pytest.raises(SystemExit):
        cli.Parser(prog="train.py").parse_args(["--version"])
    assert capsys.readouterr().out == "msngan (not installed)\n"
