"""Training and test images of the study."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan.utils.errors import UserError
from study.config import LabelledDataConfig
from study.data import training_images
from study.results import read_run
from tests.study.common import DIGITS, study


def test_held_out_images_are_apart_and_the_same_for_every_run() -> None:
    data = LabelledDataConfig(name="digits", image_size=28)
    train_on = training_images(data)
    tested = train_on.tested
    assert len(train_on) + len(tested) == 1797
    assert len(tested) == 359
    assert not set(train_on.source.indices) & set(tested.source.indices)
    assert training_images(data).fingerprint == train_on.fingerprint
    fewer = training_images(LabelledDataConfig(name="digits", image_size=28, train_images=100))
    assert len(fewer) == 100
    assert len(set(fewer.labels.class_indices)) == 10


def test_classes_of_the_test_images_must_be_those_trained_on(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.png", "test/cat/a.png", "test/cow/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28)).save(tmp_path / name)
    data = LabelledDataConfig(name="folder", path=str(tmp_path / "train"), test_path=str(tmp_path / "test"), image_size=28)
    with pytest.raises(UserError, match=r"cat, cow.*cat, dog"):
        training_images(data)


def test_vgg7_trains_on_files_in_the_format_of_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision import datasets

    draw, splits = np.random.default_rng(0), {}
    for split, count in (("train", 40), ("test", 20)):
        file = tmp_path / f"{split}_32x32.mat"
        pixels = draw.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(file, {"X": pixels, "y": 1 + np.arange(count)[:, None] % 10})  # 1 to 10; ten is the digit 0
        splits[split] = ["nowhere", file.name, datasets.utils.calculate_md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    config = DIGITS.parent / "svhn_vgg7.yaml"
    words = ["train", "--config", str(config), f"data.path={tmp_path}", f"run.dir={tmp_path}", "training.epochs=1"]
    assert study(*words, "training.batch_size=20", "training.precision=fp32") == 0
    assert read_run(tmp_path / "svhn_vgg7").complete
    trained_on = training_images(LabelledDataConfig(name="svhn", path=str(tmp_path)))
    assert trained_on.labels.class_indices.tolist() == [(1 + index % 10) % 10 for index in range(40)]
    assert len(trained_on.tested) == 20
