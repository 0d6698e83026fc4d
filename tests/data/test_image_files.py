"""Which files of a folder or zip are images, which class they are of, and whether they are grey."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval.__main__ as evaluation
from gan.data.datasets import load_images
from gan.data.sources import Source, open_source
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig
from tests.conftest import command
from tests.small import scale_down


def picture(colour: bool = False) -> bytes:
    file = io.BytesIO()
    Image.new("RGB" if colour else "L", (32, 32)).save(file, "PNG")
    return file.getvalue()


PNG = picture()
Make = Callable[[Path, list[str]], Path]


def folder_of(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return root / "images"


def zip_of(root: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo()
            entry.filename = name  # as it is: the constructor would change a backslash on Windows
            archive.writestr(entry, PNG)
    return root / "images.zip"


def opened(path: Path) -> Source:
    return open_source(DataConfig(name="folder", path=str(path)))


def classes(source: Source) -> list[str]:
    labels = source.labels()
    return [labels.classes[index] for index in labels.class_indices]


both = pytest.mark.parametrize("make", [folder_of, zip_of])
HIDDEN = (
    ".git/a.png", "ape/.thumbnails/a.png", "ape/@eaDir/a.png", "#recycle/a.png", "bee/$RECYCLE.BIN/a.png", "__MACOSX/ape/a.png",
    ".Trash-1000/files/a.png", "ape/.ipynb_checkpoints/a-checkpoint.png", "ape/._a.png", "LOST+FOUND/a.png",
)  # fmt: skip


@both
def test_images_of_hidden_and_system_folders_are_not_counted_and_make_no_class(make: Make, tmp_path: Path) -> None:
    source = opened(make(tmp_path, ["ape/a.png", "ape/b.png", "bee/a.png", *HIDDEN, "bee/Thumbs.db", "bee/desktop.ini"]))
    assert classes(source) == ["ape", "ape", "bee"]
    assert source.remarks == []


def test_a_folder_inside_a_hidden_folder_can_be_trained_on(tmp_path: Path) -> None:
    assert len(opened(folder_of(tmp_path / ".cache" / "@eaDir", ["a.png"]))) == 1


@both
def test_the_first_folder_is_the_class(make: Make, tmp_path: Path) -> None:
    names = ["ape/a.png", "ape/2024/may/b.png", "bee/2024/c.png", "bee/x/y/z/d.png"]
    assert classes(opened(make(tmp_path, names))) == ["ape", "ape", "bee", "bee"]
    within = tmp_path / "again"
    within.mkdir()
    assert classes(opened(make(within, [f"all/images/{name}" for name in names]))) == ["ape", "ape", "bee", "bee"]


@both
def test_a_file_beside_the_class_folders_is_of_no_class(make: Make, tmp_path: Path) -> None:
    source = opened(make(tmp_path, ["ape/a.png", "bee/a.png", "c.png"]))
    with pytest.raises(UserError, match="no classes"):
        source.labels()


@pytest.mark.parametrize("way", [".\\{}\\{}", "./{}/{}", "{}\\{}", "all\\{}\\{}", "/{}//{}", "../{}/{}"])
def test_names_that_other_programs_write_into_a_zip_have_their_classes(way: str, tmp_path: Path) -> None:
    names = [way.format(kind, f"{index}.png") for kind in ("ape", "bee") for index in range(3)]
    hidden = [way.format(kind, "x.png") for kind in (".git", "__MACOSX")]
    assert classes(opened(zip_of(tmp_path, [*names, *hidden, "ape\\"]))) == ["ape"] * 3 + ["bee"] * 3


def test_a_zip_with_a_dot_before_each_name_has_no_class_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no classes"):
        opened(zip_of(tmp_path, ["./a.png", "./ape/a.png"])).labels()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_later_of_two_entries_of_one_name_counts(tmp_path: Path) -> None:
    path = zip_of(tmp_path, ["a.png", "b.png"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.png", picture(colour=True))
    source = opened(path)
    assert [source.read(index).mode for index in range(len(source))] == ["RGB", "L"]


def test_linked_folders_are_entered_and_their_names_are_classes(tmp_path: Path) -> None:
    folder_of(tmp_path / "disk", ["a.png", "old/b.png"])
    root = folder_of(tmp_path, ["ape/a.png"])
    (root / "bee").symlink_to(tmp_path / "disk" / "images")
    assert classes(opened(root)) == ["ape", "bee", "bee"]


def test_links_that_lead_nowhere_or_back_are_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path, ["ape/a.png", "bee/deep/b.png"])
    (root / "cow").symlink_to(tmp_path / "not mounted")
    (root / "bee" / "deep" / "up").symlink_to(root)
    (root / "ape" / "loop").symlink_to(root / "ape")
    (root / "ape" / "itself").symlink_to(root / "ape" / "itself")
    source = opened(root)
    assert classes(source) == ["ape", "bee"]
    assert source.remarks == [f"{root}: 4 links to nowhere or to a folder above left out: ape/itself, ape/loop, bee/deep/up, cow"]
    (root / "ape" / "x.png").symlink_to(root / "ape" / "x.png")
    with pytest.raises(UserError, match=r"x\.png: cannot be read"):
        opened(root).fingerprint()


@both
def test_files_of_other_kinds_are_counted_in_a_line(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path, ["a.png", "b.HEIC", "c.heic", "d.txt", "README", ".hidden.txt"])
    assert opened(path).remarks == [f"{path}: 4 files of other kinds left out: 2 .heic, 1 .txt, 1 without an ending"]
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=r"holds no images \(2 files of other kinds left out: 2 .heic\)"):
        opened(make(tmp_path / "x", ["a.heic", "b.heic"]))


def test_a_command_says_what_it_left_out(
    tmp_path: Path, tiny: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(tmp_path, ["a.png", "b.png", "c.heic"])
    assert command(tiny("data.name=folder", f"data.path={root}", "training.steps=1")) == 0
    assert capsys.readouterr().err.count("1 file of other kinds left out: 1 .heic") == 1


@pytest.mark.parametrize("place", [0, 3, 5])
@both
def test_one_image_in_colour_makes_a_set_colour(make: Make, place: int, tmp_path: Path) -> None:
    path = make(tmp_path, [f"{index}.png" for index in range(6)])
    if path.is_dir():
        (path / f"{place}.png").write_bytes(picture(colour=True))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for index in range(6):
                archive.writestr(f"{index}.png", picture(colour=index == place))
    images = load_images(DataConfig(name="folder", path=str(path)))
    assert images.channels == 3
    said = [remark for remark in images.remarks() if f"image {place + 1} is in colour, the {place} before it" in remark]
    assert len(said) == (place > 0)
    assert load_images(DataConfig(name="folder", path=str(path), channels=1)).channels == 1


def test_grey_images_stay_grey_and_a_part_that_decided_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path, [f"{index}.png" for index in range(6)])
    images = load_images(DataConfig(name="folder", path=str(path)))
    assert (images.channels, images.remarks()) == (1, [])
    monkeypatch.setattr("gan.data.sources._LOOKED_AT", 3)
    images = load_images(DataConfig(name="folder", path=str(path)))
    assert images.channels == 1
    assert "grey, as 3 evenly spaced images of 6 are" in images.remarks()[0]


def test_fingerprints_of_ordinary_images_are_those_of_earlier_versions(tmp_path: Path) -> None:
    names = ["ape/a.png", "ape/b.png", "bee/a.png"]
    (tmp_path / "0").mkdir()
    for name in names:
        (tmp_path / "0" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "0" / name).write_bytes(b"x" * len(name))
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * len(name))
    found = [opened(tmp_path / name).fingerprint()[:16] for name in ("0", "0.zip")]
    assert found == ["eb0ca453114afc05", "060efa5010244c8e"]


def test_many_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        folder_of(tmp_path, [f"{name}/0.png"])
    for name in ("a", "b", "c"):
        for other in {"a", "b", "c"} - {name}:
            (tmp_path / "images" / name / f"to_{other}").symlink_to(tmp_path / "images" / other)
    source = opened(tmp_path / "images")
    assert set(classes(source)) == {"a", "b", "c"}
    assert np.bincount(source.labels().class_indices).tolist() == [5, 5, 5]  # each sees all chains without a repetition


def test_a_score_of_two_folders_says_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale_down(monkeypatch)
    root = folder_of(tmp_path, [f"{index}.png" for index in range(20)] + ["a.heic"])
    images = ["images", str(root), str(root), "--extractor", "efficientnet-lite0", "--size", "32"]
    assert cli.run(lambda: evaluation.main(images)) == 0
    assert "1 file of other kinds left out: 1 .heic" in capsys.readouterr().err
