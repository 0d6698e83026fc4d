"""The training and test images of a classifier: two labelled sets with the same classes."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gan.data.datasets import ImageDataset
from gan.data.sources import Source, image_channels, open_source, subset
from gan.utils import keyed_random
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig
from study.config import LabelledDataConfig

_CHOICE = 0  # seed of the choice of held-out images and of subsets, which is the same for every run


class LabelledDataset(ImageDataset):
    """Labelled training images, and the test images (``tested``); the fingerprint covers both."""

    def __init__(self, source: Source, *, size: int, channels: int, tested: ImageDataset) -> None:
        super().__init__(source, size=size, channels=channels)
        self.tested = tested

    @cached_property
    def fingerprint(self) -> str:
        return f"{self.tested.fingerprint}+{super().fingerprint}"

    def parts(self) -> list[ImageDataset]:
        return [self, self.tested]


def training_images(data: LabelledDataConfig) -> LabelledDataset:
    """Return the training and test images, both with the number of channels of the training images.

    Raises UserError as ``open_source`` does, for images without classes, and for test images with other classes.
    """
    source = open_source(data)
    channels = image_channels(data, source)
    if data.name == "digits" or (data.name == "folder" and data.test_path is None):  # no test set: hold images out
        kept, taken = _apart(len(source), data.held_out)
        other: Source = subset(source, taken)
        source = subset(source, kept)
    elif data.name == "folder":
        other = open_source(DataConfig(name="folder", path=data.test_path))
    else:
        other = open_source(DataConfig(name=data.name, path=data.path, split="test"))
    tested = ImageDataset(_some(other, data.test_images), size=data.image_size, channels=channels)
    images = LabelledDataset(_some(source, data.train_images), size=data.image_size, channels=channels, tested=tested)
    ours, theirs = tested.labels.classes, images.labels.classes
    if ours != theirs:
        raise UserError(
            f"data.test_path={data.test_path}: its classes ({', '.join(ours)}) are not those of data.path ({', '.join(theirs)})."
        )
    return images


def normalised(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Return ``images`` (B, C, S, S) in [-1, 1] as (pixels - mean) / std, with pixels in [0, 1]; without ``mean`` as they are.

    Raises UserError as ``require_channels``.
    """
    if mean is None or std is None:
        return images
    require_channels(mean, images.shape[1])
    centre, scale = (images.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (images * 0.5 + (0.5 - centre)) / scale


def require_channels(mean: Sequence[float] | None, channels: int) -> None:
    """Raise UserError for images with another number of ``channels`` than ``mean`` has."""
    if mean is not None and len(mean) not in (1, channels):
        raise UserError(f"data.mean={list(mean)}: {len(mean)} numbers, but the images have {channels} channels.")


def _shuffled(count: int) -> NDArray[np.int64]:
    return keyed_random.permutation(_CHOICE, "choice", 0, count)


def _apart(count: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of training and of test images."""
    order, tested = _shuffled(count), max(1, round(count * share))
    if tested >= count:
        raise UserError(f"data.held_out={share}: leaves none of {count} images to train on.")
    return np.sort(order[tested:]), np.sort(order[:tested])


def _some(source: Source, count: int | None) -> Source:
    """Return ``count`` of the images, the same for every run; all when ``count`` is None or there are no more."""
    if count is None or count >= len(source):
        return source
    return subset(source, np.sort(_shuffled(len(source))[:count]))
