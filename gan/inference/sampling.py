"""Images from a generator: seeded samples, grids, interpolations and animations."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from gan.utils import keyed_random
from gan.utils.files import new_folder, write_atomically

Pixels = NDArray[np.uint8]
CHUNK = 64  # images in one forward pass, see `generate`


def latents(seed: int, start: int, count: int, latent_dim: int) -> Tensor:
    """z ~ N(0, I) of the samples ``start`` to ``start + count`` of ``seed``: (count, latent_dim) float32."""
    return torch.from_numpy(keyed_random.normal(seed, "sample", start, count, latent_dim))


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0..255 by rounding, as a PNG would hold it. (Flooring would darken by half a level.)"""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def render(generator: nn.Module, z: Tensor) -> Tensor:
    """Images of the noise ``z`` (N, latent_dim), in evaluation mode and float32: (N, C, H, W) uint8 on the CPU.

    Leaves the generator's mode as it was. Images are computed in full chunks of fixed size, since a convolution's last
    bits depend on its batch size; noise that does not fill one is padded.
    """
    training = generator.training
    weight = next(generator.parameters())
    generator.eval()
    try:
        images = []
        for chunk in z.split(CHUNK):
            padded = torch.cat([chunk, chunk.new_zeros(CHUNK - len(chunk), *chunk.shape[1:])]).to(weight)
            images.append(to_uint8(generator(padded)[: len(chunk)]).cpu())
        return torch.cat(images)
    finally:
        generator.train(training)


def generate(generator: nn.Module, *, seed: int, start: int = 0, count: int, latent_dim: int) -> Iterator[Tensor]:
    """The samples ``start`` to ``start + count`` of ``seed`` in pieces of at most CHUNK: (n, C, H, W) uint8.

    A sample is a function of the generator, the seed and its index, to the last bit: chunks begin at multiples of CHUNK
    whatever range is asked for.
    """
    first = start - start % CHUNK
    for begin in range(first, start + count, CHUNK):
        images = render(generator, latents(seed, begin, CHUNK, latent_dim))
        yield images[max(0, start - begin) : min(CHUNK, start + count - begin)]


def grid(images: Tensor, columns: int | None = None, padding: int = 2) -> Pixels:
    """(N, C, H, W) uint8 side by side, on white: (H', W', 3), or (H', W') for grey. As near to a square as it goes."""
    count, channels, height, width = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    canvas = np.full((rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top = padding + index // columns * (height + padding)
        left = padding + index % columns * (width + padding)
        canvas[top : top + height, left : left + width] = image
    return canvas[..., 0] if channels == 1 else canvas


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985; for Gaussian noise, White 2016) from ``a`` (t=0) to ``b`` (t=1), (N, D) each."""
    a_unit, b_unit = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    angle = torch.acos((a_unit * b_unit).sum(1, keepdim=True).clamp(-1, 1))
    straight = torch.lerp(a, b, t)
    curved = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return torch.where(torch.sin(angle).abs() < 1e-6, straight, curved)


def interpolations(generator: nn.Module, *, seed: int, rows: int, columns: int, latent_dim: int) -> Tensor:
    """``rows`` walks between two samples each, in ``columns`` images: (rows * columns, C, H, W) uint8."""
    ends = latents(seed, 0, 2 * rows, latent_dim)
    steps = [slerp(ends[0::2], ends[1::2], column / max(1, columns - 1)) for column in range(columns)]
    return render(generator, torch.stack(steps, 1).flatten(0, 1))


def encode(pixels: Pixels, format: str = "PNG") -> bytes:
    """An image file's content for (H, W) or (H, W, 3)."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()


def save_animation(frames: Sequence[Pixels], path: Path, *, milliseconds: int = 300) -> None:
    """An endless GIF of ``frames``, the last one held longer."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = BytesIO()
    durations = [milliseconds] * (len(images) - 1) + [5 * milliseconds]
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    write_atomically(path, buffer.getvalue())


def save_images(pieces: Iterable[Tensor], out: Path, *, start: int = 0) -> int:
    """Single PNGs, named by index, into a folder or a .zip (stored, not compressed again). Returns their number.

    A kill leaves no part of them under the name of ``out``, and the same call then begins anew.

    Raises UserError when ``out`` is a folder that already holds files, which would mix two sets.
    """
    index = start
    if out.suffix.lower() == ".zip":
        unfinished = out.with_name(f".{out.name}.tmp")
        with unfinished.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for image in _single(pieces):
                    # A fixed date: the same samples give the same archive.
                    archive.writestr(zipfile.ZipInfo(f"{index:06d}.png", (1980, 1, 1, 0, 0, 0)), encode(image))
                    index += 1
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(out)
    else:
        with new_folder(out) as folder:
            for image in _single(pieces):
                (folder / f"{index:06d}.png").write_bytes(encode(image))
                index += 1
    return index - start


def _single(pieces: Iterable[Tensor]) -> Iterator[Pixels]:
    for piece in pieces:
        for image in piece.permute(0, 2, 3, 1).numpy():
            yield image[..., 0] if image.shape[-1] == 1 else image
