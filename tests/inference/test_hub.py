"""Exports on the Hugging Face Hub: what is sent, what is downloaded, and every mistake in one line."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import eval.__main__
import gan.__main__
from gan import load_generator
from gan.inference import hub
from gan.runs import checkpoints
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.settings import set_value, to_yaml
from tests.inference.fake_hub import TOKEN, FakeHub, fake_hub, go_to
from tests.small import scale_down

NAME = "alice/digits-8"
NOWHERE = "http://127.0.0.1:9"  # nobody listens


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "huggingface", monkeypatch) as found:
        yield found


@pytest.fixture
def published(server: FakeHub, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with the finished run as alice/digits-8, for everybody; the token is gone again."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert program("push", finished_run, NAME, "--license", "mit", "--public", "--yes") == 0
    monkeypatch.delenv("HF_TOKEN")
    server.asked.clear()
    return server


def program(*arguments: object) -> int:
    return cli.run(lambda: gan.__main__.main([str(argument) for argument in arguments]))


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("token", [None, TOKEN])
def test_without_yes_nothing_is_asked_of_the_hub_and_all_files_are_shown_with_their_sizes(
    token: str | None, server: FakeHub, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert program("push", finished_run, NAME) == 0
    assert server.asked == []
    shown = capsys.readouterr().out
    assert f"Nothing was sent. Add --yes to send these files to {NAME}, a private repository" in shown
    assert program("export", finished_run, "--out", tmp_path / "exported") == 0
    files = {path.name: path.stat().st_size for path in (tmp_path / "exported").iterdir()}
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in shown.splitlines()[1:-1]}
    assert listed.keys() == files.keys()
    same = files.keys() - {"README.md", "config.yaml", "checkpoint.json"}  # these name the repository, not a folder
    assert {name: listed[name] for name in same} == {name: files[name] for name in same}


def test_what_was_pushed_loads_and_samples_the_same_with_and_without_a_network(
    published: FakeHub, finished_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load_generator(finished_run).sample(5)
    caplog.set_level("INFO")
    assert torch.equal(load_generator(f"hf://{NAME}").sample(5), expected)
    assert f"{published.revision(NAME)}: step 4, ema weights" in caplog.text
    assert 'load_generator("hf://alice/digits-8")' in published.repositories[NAME]["README.md"].decode()
    assert "cache" not in caplog.messages[-1].replace(constants.HF_HUB_CACHE, "")
    go_to(NOWHERE, monkeypatch)
    assert torch.equal(load_generator(Path(f"hf://{NAME}")).sample(5), expected)  # a Path has one slash of two
    assert f"hf://{NAME}: taken from the hub's cache ([Errno 111] Connection refused)" in caplog.text
    assert torch.equal(load_generator(f"hf://{NAME}@{published.revision(NAME)}").sample(5), expected)


def test_only_weights_and_configuration_are_downloaded(published: FakeHub) -> None:
    published.repositories[NAME] |= {"evil.py": b"1 / 0", "sub/ema.safetensors": b"", "optimizers.pt": b"\x80", "huge.bin": b""}
    folder = load_generator(f"hf://{NAME}").folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.json", "checkpoint.sha256", "config.yaml", "ema.safetensors",
    ]  # fmt: skip
    assert not [line for line in published.asked if line.endswith((".py", ".pt", ".bin", ".md", ".png"))]


def test_weights_that_were_changed_on_the_hub_are_refused(published: FakeHub) -> None:
    weights = published.repositories[NAME]["ema.safetensors"]
    published.repositories[NAME]["ema.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(UserError, match="has been changed or damaged"):
        load_generator(f"hf://{NAME}")


def test_no_folder_of_the_authors_machine_is_sent(
    server: FakeHub, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load_generator(finished_run)
    config = generator.config
    for key, value in (("run.dir", str(tmp_path)), ("data.path", str(tmp_path / "faces.zip")), ("data.name", "folder")):
        config = set_value(config, key, value)
    checkpoints.write_weights(tmp_path / "exported", 4, {"ema": generator.network.state_dict()}, to_yaml(config))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert program("push", tmp_path / "exported", NAME, "--yes") == 0
    sent = server.repositories[NAME]
    assert [name for name, content in sent.items() if str(tmp_path).encode() in content] == []
    assert "path: faces.zip" in sent["config.yaml"].decode()
    assert load_generator(f"hf://{NAME}").config.data.path == "faces.zip"


def test_a_repository_is_private_unless_public_and_a_second_push_replaces_the_first(
    server: FakeHub, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert program("push", finished_run, NAME, "--yes") == 0
    assert f"sent to {constants.ENDPOINT}/{NAME}" in capsys.readouterr().out
    assert server.private == {NAME}
    with monkeypatch.context() as stranger:
        stranger.delenv("HF_TOKEN")
        with pytest.raises(UserError, match=r"no such repository on .*, or a private one\. Run `hf auth login`"):
            load_generator(f"hf://{NAME}")
    server.repositories[NAME] |= {"generator.onnx": b"of the first", "notes.txt": b"the author's"}
    assert program("push", finished_run, NAME, "--weights", "raw", "--yes") == 0
    there = server.repositories[NAME]
    assert {"generator.safetensors", "notes.txt"} <= there.keys()
    assert not {"ema.safetensors", "generator.onnx"} & there.keys()
    assert torch.equal(load_generator(f"hf://{NAME}").sample(2), load_generator(finished_run, "raw").sample(2))


def test_commands_that_take_a_run_take_an_address_and_write_nothing_into_the_hubs_cache(
    published: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    folder = load_generator(f"hf://{NAME}").folder
    before = contents(tmp_path / "huggingface")
    assert program("sample", f"hf://{NAME}", "--out", tmp_path / "a.png", "--count", 4) == 0
    words = ["score", f"hf://{NAME}", "--protocol", "quick", "--extractor", "efficientnet-lite0", "--json"]
    for _ in range(2):  # the second time it is found again
        capsys.readouterr()
        assert cli.run(lambda: eval.__main__.main(words)) == 0
    assert '"step": 4' in capsys.readouterr().out
    kept = Path(os.environ["MSNGAN_CACHE"]) / "hub" / "models--alice--digits-8" / folder.name / "scores.jsonl"
    assert kept.read_text().count("\n") == 1
    assert contents(tmp_path / "huggingface") == before
    assert program("export", f"hf://{NAME}", "--out", tmp_path / "exported") == 0
    assert "| Frechet distance |" in (tmp_path / "exported" / "README.md").read_text()


MISTAKES = {
    "no owner": ("hf://digits", "'digits': expected OWNER/NAME on the hub"),
    "not a name": ("hf://a--b/c", "'a--b/c': expected OWNER/NAME on the hub"),
    "nothing": ("hf://", "'': expected OWNER/NAME on the hub"),
    "revision elsewhere": ("hf://alice/digits-8@../../x", "'../../x' is neither a branch, a tag nor a commit"),
    "no such repository": ("hf://alice/none", "hf://alice/none: no such repository on http://127.0.0.1:"),
    "no such revision": (f"hf://{NAME}@v2", f"hf://{NAME}@v2: the repository has no such revision."),
    "something else": ("hf://bob/bert", "hf://bob/bert: holds no generator of msngan (no checkpoint.json)."),
    "too large": ("hf://bob/large", "hf://bob/large: has 3,000,000,000 bytes of a generator; at most 2,147,483,648"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_address_is_one_line(
    mistake: str, server: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repositories["bob/bert"] = {"model.safetensors": b"", "README.md": b""}
    server.repositories[NAME] = server.repositories["bob/large"] = {"checkpoint.json": b"{}", "generator.safetensors": b""}
    server.sizes["generator.safetensors"] = 3_000_000_000 - 2
    address, words = MISTAKES[mistake]
    assert program("sample", address, "--out", tmp_path / "a.png") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "a.png").exists()
    assert not [asked for asked in server.asked if "/resolve/" in asked], "a file was downloaded"


@pytest.mark.parametrize("offline", [True, False])
def test_an_address_without_a_network_and_cache_is_one_line(
    offline: bool, server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    go_to(NOWHERE, monkeypatch)
    assert program("sample", f"hf://{NAME}", "--out", tmp_path / "a.png") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: hf://{NAME}: not in the hub's cache, and {NOWHERE} cannot be reached (" in line


PUSHES = {
    "no token": ([NAME, "--yes"], None, "no token of the hub found, so nothing was sent. Run `hf auth login`, or set HF_TOKEN"),
    "a wrong token": ([NAME, "--yes"], "hf_wrong", "alice/digits-8: refused by http://127.0.0.1:"),
    "a name without owner": (["digits", "--yes"], TOKEN, "'digits': expected OWNER/NAME on the hub"),
    "a licence in words": (
        [NAME, "--license", "MIT License"],
        None,
        "--license 'MIT License': expected an identifier such as mit",
    ),
    "another's files": (["bob/bert", "--yes"], TOKEN, "bob/bert: holds files that are no generator of msngan. Nothing was sent."),
}


@pytest.mark.parametrize("mistake", PUSHES)
def test_a_mistaken_push_is_one_line_and_sends_nothing(
    mistake: str, server: FakeHub, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repositories["bob/bert"] = {"model.safetensors": b"weights"}
    given, token, words = PUSHES[mistake]
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    capsys.readouterr()
    assert program("push", finished_run, *given) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert server.repositories == {"bob/bert": {"model.safetensors": b"weights"}}


def test_a_push_without_a_network_is_one_line(
    server: FakeHub, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    go_to(NOWHERE, monkeypatch)
    assert program("push", finished_run, NAME, "--yes") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (f"error: {NAME}: failed at {NOWHERE} ([Errno 111] Connection refused).")


def test_names_of_the_hub_are_told_from_paths() -> None:
    assert [path for path in ("hf://a/b", Path("hf://a/b"), "runs/hf", "./hf:/a/b", "hf") if hub.is_address(path)] == [
        "hf://a/b", Path("hf:/a/b"),
    ]  # fmt: skip
