"""Runs that the tests of the study share."""

from pathlib import Path

import pytest

from tests.study.common import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps. Tests must not change it."""
    return train(tmp_path_factory.mktemp("study"))
