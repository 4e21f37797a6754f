import numpy as np
import pytest

from core.nas.features import raw_features
from core.nas.spaces.nasbench_graph import OPERATIONS, GraphCell, NASBenchGraph

SPACE = NASBenchGraph()
GAT, GCN, GIN, FC, SKIP = (OPERATIONS.index(n) for n in ("gat", "gcn", "gin", "fc", "skip"))


def test_enumeration_gives_the_published_number_of_architectures():
    cells = list(SPACE.enumerate())
    assert len({SPACE.key(c) for c in cells}) == len(cells) == 26_206


def same(a, b):
    return SPACE.key(GraphCell(*a)) == SPACE.key(GraphCell(*b))


def test_order_of_nodes_does_not_matter():
    assert same(((0, 1, 2, 1), (GCN, GIN, FC, GAT)), ((0, 1, 1, 2), (GCN, GIN, GAT, FC)))
    assert not same(((0, 1, 2, 1), (GCN, GIN, FC, GAT)), ((0, 1, 1, 2), (GCN, GAT, GIN, FC)))


def test_skips_that_others_read_are_no_operation():
    assert same(((0, 1, 2, 3), (GCN, SKIP, GIN, FC)), ((0, 1, 2, 3), (SKIP, GCN, GIN, FC)))


def test_a_skip_beside_another_branch_is_a_residual_and_counts():
    residual = ((0, 1, 1, 3), (GCN, SKIP, GIN, FC))
    assert not same(residual, ((0, 1, 2, 3), (GCN, SKIP, GIN, FC)))
    assert same(((0, 1, 2, 3), (GCN, GIN, FC, SKIP)), ((0, 1, 2, 3), (SKIP, GCN, GIN, FC)))  # alone it does nothing


def test_raw_features_do_not_reach_the_output_by_skips():
    assert same(((0, 0, 0, 0), (SKIP, GCN, GIN, FC)), ((0, 1, 1, 1), (SKIP, GCN, GIN, FC)))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (GraphCell((0, 0, 0), (0, 0, 0)), "4 links"),
        (GraphCell((0, 2, 0, 0), (0, 0, 0, 0)), "cyclic or unsorted .* node 2"),
        (GraphCell((0, 0, 0, 0), (0, 0, 0, 9)), "unknown operation 9"),
        (GraphCell((0, 0, 0, 0), (SKIP,) * 4), "skips alone"),
    ],
)
def test_bad_cells_name_the_rule(cell, message):
    with pytest.raises(ValueError, match=message):
        SPACE.check(cell)


def test_published_numbers():
    assert SPACE.from_number(31118) == GraphCell((0, 0, 1, 2), (1, 1, 1, SKIP))
    with pytest.raises(ValueError, match="nasbench-graph number"):
        SPACE.from_number(91111)


def test_features_are_those_of_the_architecture():
    """A skip from the raw features may stand at either place; what is seen of the cell does not depend on it."""
    one, other = SPACE.parse("0,0,0,1 gin,fc,skip,gat"), SPACE.parse("0,1,2,1 skip,gin,gat,fc")
    assert SPACE.key(one) == SPACE.key(other)
    assert np.array_equal(*raw_features(SPACE, [one, other]))
