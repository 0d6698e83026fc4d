"""Freed memory stays with the process, unless the user wants it otherwise."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from gan.utils.memory import keep_large_blocks
kept = keep_large_blocks()
def page_faults():
    for _ in range(20):
        bytearray(16 << 20)  # written with zeros, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(kept, -(page_faults() - page_faults()))
"""


def measure(**environment: str) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_large_blocks_are_mapped_once() -> None:
    kept, faults = measure()
    if not kept:
        pytest.skip("the C library is not glibc")
    assert faults < 5000  # 20 x 16 MiB are 81,920 pages


def test_it_can_be_turned_off() -> None:
    assert not measure(MSNGAN_ALLOCATOR="system")[0]
