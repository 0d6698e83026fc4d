"""Weights that the tests of extractors share."""

from pathlib import Path

import pytest

from benchmarks import peers


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception that tell images apart. Not to be changed."""
    return peers.random_inception_weights(tmp_path_factory.mktemp("weights") / "inception.pth")
