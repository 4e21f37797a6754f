"""A figure of energy says where it comes from and what it leaves out."""

import tomllib
from pathlib import Path

import pytest

from core.transfer.cost import Cost
from core.transfer.energy import counted


@pytest.mark.parametrize(
    ("source", "device", "words", "leaves_out"),
    [
        ("estimate", "cpu", "estimated", None),
        ("estimate", "cuda", "estimated", "the GPU not counted"),
        ("rapl", "cpu", "measured on the CPU", None),
        ("rapl", "cuda", "measured on the CPU", "the GPU not counted"),
        ("nvml", "cuda", "measured on the first GPU", "its CPU not counted"),
    ],
)
def test_origin_of_the_figure(source, device, words, leaves_out):
    told = counted(Cost(energy_source=source), device)
    assert told.startswith(words)
    assert leaves_out in told if leaves_out else "not counted" not in told


def test_the_package_that_reads_the_counter_is_an_extra():
    facts = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert any(d.startswith("nvidia-ml-py") for d in facts["project"]["optional-dependencies"]["gpu"])
