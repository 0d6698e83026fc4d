"""What the tests of faults share."""

from collections.abc import Iterator

import pytest
import torch

from tests.faults.worlds import GAN, STUDY, World
from tests.small import scale_down


@pytest.fixture(scope="module")
def _quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        scale_down(patch)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gans(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> World:
    return World(tmp_path_factory.mktemp("gan"), GAN, "train", "score")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> World:
    return World(tmp_path_factory.mktemp("study"), STUDY, "train")
