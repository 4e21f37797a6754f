import numpy as np
import pandas as pd
import pytest

from core.nas.spaces.nb201 import NB201, NB201Cell

SPACE = NB201()


def test_enumeration_gives_every_key_once():
    cells = list(SPACE.enumerate())
    assert len({SPACE.key(c) for c in cells}) == len(cells) == 15_625
    assert [SPACE.code(c) for c in cells[::1000]] == list(range(0, 15_625, 1000))


def test_official_string_and_digits_are_the_same_cell():
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert SPACE.parse(text) == SPACE.parse("421211") == NB201Cell((4, 2, 1, 2, 1, 1))
    assert SPACE.format(SPACE.parse("421211")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("421219", "unknown operation 9"),
        (
            "|avg_pool~0|+|none~0|none~1|+|none~0|none~1|none~2|",
            "unknown operation 'avg_pool'.*did you mean 'avg_pool_3x3'",
        ),
        ("|none~0|+|none~0|none~1|", "3 nodes"),
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", "node 2 .* has 2 inputs"),
        ("|none~0|+|none~0|none~2|+|none~0|none~1|none~2|", "must end in ~1"),
        ("none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "node 1"),
    ],
)
def test_bad_strings_name_the_rule(text, message):
    with pytest.raises(ValueError, match=message):
        SPACE.parse(text)


@pytest.mark.parametrize("ops", [(0, 0, 0), (0, 0, 0, 0, 0, 5), (0, 0, 0, 0, 0, -1), (0, 0, 0, 0, 0, "none")])
def test_bad_genotypes_are_refused(ops):
    with pytest.raises(ValueError, match="nb201"):
        SPACE.check(NB201Cell(ops))


@pytest.mark.shared
def test_sizes_are_those_of_the_benchmark(shared_data):
    table = pd.read_parquet(shared_data / "nas/nb201.parquet", columns=["arch", "c10_params_M", "c10_flops_M"])
    sizes = [SPACE.size_features(SPACE.parse(a)) for a in table["arch"]]
    params = np.array([s["params"] for s in sizes]) / 1e6
    flops = np.array([s["flops"] for s in sizes]) / 1e6
    np.testing.assert_allclose(flops, table["c10_flops_M"], atol=1e-5)
    assert (np.abs(params - table["c10_params_M"]) > 1e-6).sum() == 150  # records that state another cell's weights
