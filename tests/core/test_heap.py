"""Freed memory goes back to the system."""

import sys

import pytest

from core.heap import give_back


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_goes_back():
    kept, blocks = [], []
    for i in range(20_000):  # small blocks with some kept between them, as a training leaves them
        blocks.append(bytearray(8_000))
        if i % 50 == 0:
            kept.append(bytearray(8_000))
    full = resident()
    blocks.clear()
    give_back()
    assert full - resident() > 100e6
    assert len(kept) == 400
