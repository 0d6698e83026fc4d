"""Random crops: where they are cut, and that they depend on neither processes, streaming nor the start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gan.config import GanConfig, GanTrainingConfig, load_config
from gan.data.datasets import ImageDataset
from gan.data.sources import ArraySource
from gan.data.stream import BatchShard, BatchStream
from gan.utils.errors import UserError
from gan.utils.settings import DataConfig

SIZE, PADDING = 8, 3
PIXELS = np.arange(1, 1 + 20 * SIZE * SIZE, dtype=np.int64).reshape(20, SIZE, SIZE) % 251 + 1  # no pixel is black


def images() -> ImageDataset:
    return ImageDataset(ArraySource(PIXELS.astype(np.uint8), np.zeros(20)), size=SIZE, channels=1)


def stream(*, processes: int = 1, rank: int = 0, memory: bool = True, **data: Any) -> BatchStream:
    found = images()
    config = GanConfig(data=DataConfig(workers=0, **data), training=GanTrainingConfig(batch_size=12))
    shard = BatchShard.of(config, rank=rank, processes=processes)
    pixels = torch.stack([found[index] for index in range(len(found))]) if memory else None
    return BatchStream(found, pixels, config=config, shard=shard, device=torch.device("cpu"))


def whole(batch: Tensor) -> Tensor:
    return ((batch + 1) * 127.5).round().to(torch.uint8)


def test_each_image_is_shifted_by_its_own_distance_and_filled_with_black() -> None:
    plain, cropped = stream(), stream(crop_padding=PADDING)
    seen = set()
    for update in range(20):
        for before, after in zip(whole(plain.batch(update)), whole(cropped.batch(update)), strict=True):
            padded = torch.nn.functional.pad(before, [PADDING] * 4)
            places = [
                (y, x)
                for y in range(2 * PADDING + 1)
                for x in range(2 * PADDING + 1)
                if torch.equal(padded[:, y : y + SIZE, x : x + SIZE], after)
            ]
            assert len(places) == 1
            seen |= set(places)
    assert len(seen) == (2 * PADDING + 1) ** 2


def test_crops_depend_on_the_position_alone() -> None:
    options: dict[str, Any] = {"crop_padding": PADDING, "flip": True}
    one = stream(**options)
    streamed = stream(memory=False, **options)
    ranks = [stream(processes=2, rank=rank, **options) for rank in range(2)]
    for update in (3, 0, 1, 9):
        batch = one.batch(update)
        assert torch.equal(batch, torch.cat([rank.batch(update) for rank in ranks]))
        assert torch.equal(batch, streamed.batch(update))
    assert not torch.equal(one.batch(0), stream(flip=True).batch(0))


def test_impossible_padding_is_refused_and_a_gan_is_warned(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data: {image_size: 32}\n")
    for value, expected in (("32", "below data.image_size=32"), ("-1", "not be negative")):
        with pytest.raises(UserError, match=expected):
            load_config(path, [f"data.crop_padding={value}"])
    assert any("black edges" in warning for warning in load_config(path, ["data.crop_padding=4"]).warnings())
    assert not load_config(path).warnings()
