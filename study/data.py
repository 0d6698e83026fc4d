"""What a classifier is trained and tested on: two sets of images with the same classes."""

import numpy as np
from numpy.typing import NDArray

from gan import keyed
from gan.data import Images
from gan.errors import UserError
from gan.settings import Data
from gan.sources import Part, Source, image_channels, open_source
from study.config import LabelledData

_CHOICE = 0  # seed of what is drawn once for all runs: which images are held out, and which are left when only some are used


def training_images(data: LabelledData) -> Images:
    """The images to train on. Raises UserError as ``open_source`` does, and where they have no classes."""
    source = open_source(data)
    if _held_out(data):
        source = Part(source, _apart(len(source), data.held_out)[0])
    return _images(_some(source, data.train_images), data, image_channels(data, source))


def test_images(data: LabelledData, like: Images) -> Images:
    """The images to test on, in as many channels as those ``like`` which it was trained.

    Raises UserError as ``training_images``, and where the classes are others.
    """
    if _held_out(data):
        source = open_source(data)
        source = Part(source, _apart(len(source), data.held_out)[1])
    elif data.name == "folder":
        source = open_source(Data(name="folder", path=data.test_path))
    else:
        source = open_source(Data(name=data.name, path=data.path, split="test"))
    images = _images(_some(source, data.test_images), data, like.channels)
    ours, theirs = images.labels.classes, like.labels.classes
    if ours != theirs:
        raise UserError(
            f"data.test_path={data.test_path}: its classes ({', '.join(ours)}) are not those of data.path ({', '.join(theirs)})."
        )
    return images


def _held_out(data: LabelledData) -> bool:
    """Whether there are no test images but those that are taken from the others."""
    return data.name == "digits" or (data.name == "folder" and data.test_path is None)


def _images(source: Source, data: LabelledData, channels: int) -> Images:
    images = Images(source, size=data.image_size, channels=channels)
    _ = images.labels  # that there are classes is known before anything is trained
    return images


def _shuffled(count: int) -> NDArray[np.int64]:
    return keyed.permutation(_CHOICE, "choice", 0, count)


def _apart(count: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to train on, and those to test on."""
    order, tested = _shuffled(count), max(1, round(count * share))
    if tested >= count:
        raise UserError(f"data.held_out={share}: leaves none of {count} images to train on.")
    return np.sort(order[tested:]), np.sort(order[:tested])


def _some(source: Source, count: int | None) -> Source:
    """``count`` of the images, the same for every run; all where there are no more."""
    if count is None or count >= len(source):
        return source
    return Part(source, np.sort(_shuffled(len(source))[:count]))
