"""Space-independent features against hand-counted graphs."""

import networkx as nx
import numpy as np
import pytest

from core.nas.features import COLUMNS, NAMES, Scale, contract, measure, raw_features
from core.nas.spaces import SPACES, get_space


def column(values, name):
    return float(values[0, NAMES.index(name)])


def features_of(space, text):
    s = get_space(space)
    return raw_features(s, [s.parse(text)])


def test_a_chain_and_a_shortcut_are_counted_by_hand():
    """input -> conv3x3 -> maxpool -> output, and input -> output."""
    f = features_of("nb101", "101101 conv3x3-bn-relu,maxpool3x3")
    assert column(f, "nodes") == 2
    assert column(f, "edges") == 4
    assert np.isclose(column(f, "log_paths"), np.log(2))
    assert (column(f, "longest_length"), column(f, "shortest_length"), column(f, "mean_length")) == (2, 0, 1)
    assert (column(f, "sum_learn"), column(f, "share_pool")) == (1, 0.5)
    assert (column(f, "free_paths"), column(f, "has_identity")) == (0.5, 1)
    assert column(f, "connected") == 1


def test_operations_on_edges_give_the_graph_of_operations_on_nodes():
    """nb201 with one 3x3 on 0->3 only is nb101's single 3x3 chain."""
    edge = features_of("nb201", "000300")
    node = features_of("nb101", "101 conv3x3-bn-relu")
    assert np.allclose(edge[:, : len(NAMES)], node[:, : len(NAMES)])


def test_dead_branches_do_not_count():
    live, dead = features_of("nb201", "000300"), features_of("nb201", "300300")
    assert np.allclose(live[:, : len(NAMES)], dead[:, : len(NAMES)])
    assert not features_of("nb201", "300000")[:, : len(NAMES)].any()


@pytest.mark.parametrize("name", SPACES.names())
def test_equal_architectures_have_equal_features(name):
    space, rng = get_space(name), np.random.default_rng(0)
    cells = [space.sample(rng) for _ in range(8)]
    renamed = [space.relabel(c, rng) for c in cells]
    raw = raw_features(space, cells)
    assert raw.shape == (8, len(COLUMNS))
    assert np.isfinite(raw).all()
    assert np.allclose(raw, raw_features(space, renamed), atol=1e-5)


def test_ranks_count_ties_half_and_distances_are_standardised():
    rng = np.random.default_rng(0)
    raw = np.stack([np.arange(4.0), np.ones(4)], axis=1).astype(np.float32)
    scale = Scale.of(raw)
    assert np.allclose(scale.ranks(raw), [[0.125, 0.5], [0.375, 0.5], [0.625, 0.5], [0.875, 0.5]])
    many = rng.standard_normal((500, 6)).astype(np.float32)
    points = Scale.of(many).distances(many)
    assert np.isclose((points**2).sum(1).mean(), 1, atol=0.05)


def test_bad_graphs_are_refused():
    loop = nx.DiGraph([(0, 1), (1, 0)])
    with pytest.raises(ValueError, match="cycle"):
        contract(loop)
    lonely = nx.DiGraph()
    lonely.add_node(0, op="input")
    with pytest.raises(ValueError, match="output"):
        contract(lonely)


def test_a_batch_is_measured_like_its_members():
    rng = np.random.default_rng(1)
    edges = np.triu(rng.random((5, 6, 6)) < 0.5, 1)
    values = rng.random((5, 6, 7))
    values[:, [0, -1]] = 0
    whole = measure(edges, values)
    assert np.allclose(whole, np.concatenate([measure(edges[i : i + 1], values[i : i + 1]) for i in range(5)]))
