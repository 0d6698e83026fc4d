"""The class of each image of a folder or zip: the first folder of its path."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gan.utils.errors import UserError


class Labels(NamedTuple):
    """The class of each image of a source."""

    class_indices: NDArray[np.int64]  # (N,), from 0
    classes: tuple[str, ...]  # names


def class_folders(names: Sequence[str], where: Path) -> Labels:
    """Return the class of each file: the first of its folders that not all files share. Classes are numbered by name.

    ``names`` are paths with slashes in the folder or zip ``where``. In torchvision.datasets.ImageFolder, too, the first folder
    is the class, but a folder around all others has to be removed there.

    Raises UserError for fewer than two classes, and files outside of the class folders.
    """
    folders = [name.split("/")[:-1] for name in names]
    lowest, highest = min(folders), max(folders)  # what these two share, all others in between share too
    depth = next((n for n, (a, b) in enumerate(zip(lowest, highest, strict=False)) if a != b), min(len(lowest), len(highest)))
    of_each = [path[depth] if len(path) > depth else "" for path in folders]
    classes = tuple(sorted(set(of_each)))
    if "" in classes or len(classes) < 2:
        raise UserError(f"{where}: no classes. Expected the images in one folder a class, such as cat/1.png and dog/2.png.")
    index_of = {name: index for index, name in enumerate(classes)}
    return Labels(np.array([index_of[folder] for folder in of_each], dtype=np.int64), classes)
