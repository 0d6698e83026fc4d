"""Load the data sets that torchvision knows; download, verify and unpack them first if they are not on the disk."""

import gzip
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan.utils.downloads import download, has_checksum
from gan.utils.errors import UserError, first_line
from gan.utils.files import remove_unfinished, write_atomically
from gan.utils.locks import locked
from gan.utils.settings import DataConfig

log = logging.getLogger(__name__)


def load_published(data: DataConfig) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """Load the images that ``data`` names, (N, H, W) or (N, H, W, C), the class index of each (N,), and the number of classes.

    Raises UserError if they are not on the disk and cannot be downloaded.
    """
    from torchvision import datasets  # takes seconds to import, and digits and folders do not need it

    root = Path(data.path or f"data/{data.name}")
    kinds = (datasets.MNIST, datasets.FashionMNIST, datasets.CIFAR10, datasets.CIFAR100, datasets.SVHN)
    kind: Any = dict(zip(("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"), kinds, strict=True))[data.name]
    if data.name in ("mnist", "fashion_mnist"):
        file = f"{kind.__name__}/raw/*-ubyte (four files)"
    else:
        file = kind.split_list[data.split][1] if data.name == "svhn" else kind.filename
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            dataset = _mnist(kind, root, data) if "mnist" in data.name else _cifar_or_svhn(kind, root, data)
    except Exception as error:  # noqa: BLE001 (a damaged file can make its reader raise anything)
        raise UserError(
            f"data.name={data.name}: not found at {root.resolve()} and could not be downloaded ({first_line(error)})."
            f" Put {file} there yourself, or set data.path to the folder that holds it."
        ) from None
    images = np.asarray(dataset.data)
    if data.name == "svhn":
        return images.transpose(0, 2, 3, 1), dataset.labels, 10
    return images, np.asarray(dataset.targets), 100 if data.name == "cifar100" else 10


def _cifar_or_svhn(kind: Any, root: Path, data: DataConfig) -> Any:
    """Return torchvision's data set of the class ``kind``, downloaded if its files are missing or damaged."""
    part = data.split if data.name == "svhn" else data.split == "train"
    try:
        return kind(root, part)  # checks the MD5 of each file
    except RuntimeError:  # missing or damaged
        url, name, md5 = kind.split_list[data.split] if data.name == "svhn" else (kind.url, kind.filename, kind.tgz_md5)
        if not has_checksum(root / name, "md5", md5):
            download([url], root / name, "md5", md5)
        return kind(root, part, download=True)  # finds the archive and unpacks it


def _mnist(kind: Any, root: Path, data: DataConfig) -> Any:
    """Return torchvision's data set of the class ``kind``, its files downloaded if they are missing or damaged.

    They are unpacked here, since torchvision would accept half of a file that a kill left behind.
    """
    folder = root / kind.__name__ / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    for name, md5 in kind.resources:
        archive, file = folder / name, folder / name.removesuffix(".gz")
        if _is_whole_idx(file):
            continue
        if file.exists():
            log.warning(f"{file}: incomplete. It is unpacked again.")
        if not has_checksum(archive, "md5", md5):
            download([mirror + name for mirror in kind.mirrors], archive, "md5", md5)
        write_atomically(file, gzip.decompress(archive.read_bytes()))
    return kind(root, data.split == "train")


def _is_whole_idx(file: Path) -> bool:
    """Return whether ``file`` is as long as its IDX header says.

    The header is 0, 0, 8 (for uint8), the number of dimensions, then each size as four bytes, most significant first.
    """
    if not file.is_file():
        return False
    with file.open("rb") as content:
        start = content.read(4)
        dimensions = start[3] if start[:3] == b"\0\0\x08" and len(start) == 4 else 0
        sizes = [int.from_bytes(content.read(4), "big") for _ in range(dimensions)]
    return dimensions > 0 and file.stat().st_size == 4 + 4 * dimensions + math.prod(sizes)
