"""Damages to the files of a folder, as fuzzing draws them."""

import shutil
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

Contents = dict[str, bytes]  # by path
KINDS = ("remove", "truncate", "flip", "empty", "copy", "folder", "file", "link", "dangle", "swap")
NAMES = ("copy", "step-00000005", "step-00000009", "step-x", "tmp-00000005", "damaged-step-00000004", ".best.old", ".best.new",
    "best", "samples", "checkpoints", "metrics.jsonl", ".config.yaml.1.tmp")  # fmt: skip


class Damage(NamedTuple):
    """One damage. ``which`` and ``other`` are paths, or count a folder's entries in their order, round and round."""

    kind: str
    which: int | str = 0
    other: int | str = 0
    where: float = 0.5  # in the file, from 0 to 1
    name: str = "copy"

    def apply(self, root: Path) -> None:
        entries = sorted(path for path in root.rglob("*") if path.name not in (".lock", ".scores.lock"))
        if not entries:
            return
        path, other = (root / i if isinstance(i, str) else entries[i % len(entries)] for i in (self.which, self.other))
        if self.kind == "swap":
            _swap(path, other, root)
        elif self.kind == "copy":
            _copy(path, other.parent / self.name)
        elif self.kind in ("truncate", "flip", "empty"):
            if path.is_file() and (content := path.read_bytes()):
                path.write_bytes(self.changed(content))
        else:
            kept = path.with_name(".kept")
            path.rename(kept)
            if self.kind == "folder":
                path.mkdir()
            elif self.kind == "file":
                path.write_bytes(b"x")
            elif self.kind == "link":  # to what it was
                (root.parent / "elsewhere").mkdir(exist_ok=True)
                kept = kept.rename(root.parent / "elsewhere" / str(len(list((root.parent / "elsewhere").iterdir()))))
                path.symlink_to(kept)
                return
            elif self.kind == "dangle":
                path.symlink_to("nowhere")
            _remove(kept)

    def changed(self, content: bytes) -> bytes:
        """A file's content after a flip of one bit, a cut or all of it gone."""
        at = int(self.where * (len(content) - 1))
        if self.kind == "flip":
            bit = self.other if isinstance(self.other, int) else 0
            return content[:at] + bytes([content[at] ^ (1 << bit % 8)]) + content[at + 1 :]
        return content[:at] if self.kind == "truncate" else b""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _copy(path: Path, target: Path) -> None:
    if target.exists() or target.is_symlink() or path in target.parents:
        return
    if path.is_dir():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def _swap(path: Path, other: Path, root: Path) -> None:
    if path == other or path in other.parents or other in path.parents:
        return
    between = root / ".between"
    path.rename(between)
    other.rename(path)
    between.rename(other)


damages = st.lists(
    st.builds(Damage, st.sampled_from(KINDS), st.integers(0, 60), st.integers(0, 60), st.floats(0, 1), st.sampled_from(NAMES)),
    min_size=1,
    max_size=2,
)


def contents(folder: Path) -> Contents:
    """Every file, link and folder below ``folder``, but for locks."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name not in (".lock", ".scores.lock"):
            name = str(path.relative_to(folder))
            if path.is_symlink():
                found[name] = b"link to " + str(path.readlink()).encode()
            else:
                found[name] = path.read_bytes() if path.is_file() else b"folder"
    return found
