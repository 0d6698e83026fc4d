"""Images as files: grids, single PNGs and animations."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gan.utils.errors import UserError
from gan.utils.files import new_folder, write_atomically

Pixels = NDArray[np.uint8]


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255 by rounding, as in a PNG. Flooring would darken images by half a level."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int | None = None) -> Pixels:
    """Return images (N, C, H, W) uint8 side by side on white: (H', W', 3), or (H', W') for grey; by default nearly square."""
    count, channels, height, width = images.shape
    padding = 2
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    canvas = np.full((rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top = padding + index // columns * (height + padding)
        left = padding + index % columns * (width + padding)
        canvas[top : top + height, left : left + width] = image
    return _without_grey_axis(canvas)


def encode(pixels: Pixels, format: str = "PNG") -> bytes:
    """Return the content of an image file for (H, W) or (H, W, 3) uint8."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()


def save_animation(frames: Sequence[Pixels], path: Path) -> None:
    """Write ``frames`` as an endless GIF, 0.3 s each and the last one 1.5 s."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    buffer = BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=[300] * len(others) + [1500], loop=0)
    write_atomically(path, buffer.getvalue())


def save_images(pieces: Iterable[Tensor], out: Path) -> None:
    """Write single PNGs, named by index, into a folder or a .zip (stored, not compressed).

    A kill leaves no part of them under the name of ``out``, and the same call then begins anew.

    Raises UserError when ``out`` is a folder that already holds files, which would mix two sets, or a folder named .zip.
    """
    images = (image for piece in pieces for image in piece.permute(0, 2, 3, 1).numpy())
    files = ((f"{index:06d}.png", encode(_without_grey_axis(image))) for index, image in enumerate(images))
    if out.suffix.lower() == ".zip":
        if out.is_dir():
            raise UserError(f"{out}: a folder. Choose another name for the .zip.")
        unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            with unfinished.open("wb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    for name, content in files:
                        # A fixed date: the same samples give the same archive.
                        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(out)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    else:
        with new_folder(out) as folder:
            for name, content in files:
                (folder / name).write_bytes(content)


def _without_grey_axis(image: Pixels) -> Pixels:
    """Return (H, W, 3) as it is and (H, W, 1) as (H, W)."""
    return image[..., 0] if image.shape[-1] == 1 else image
