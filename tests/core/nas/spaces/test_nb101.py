import numpy as np
import pandas as pd
import pytest

from core.nas.spaces.nb101 import NB101, NB101Cell, matrix_of, prune

SPACE = NB101()
DIAMOND = [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
NAMES = ["input", "conv3x3-bn-relu", "maxpool3x3", "output"]


@pytest.fixture(scope="module")
def enumerated():
    return list(SPACE.enumerate())


def test_enumeration_gives_every_cell_once(enumerated):
    assert len(enumerated) == len(set(enumerated)) == 423_624
    by_nodes = np.bincount([c.nodes for c in enumerated])
    assert by_nodes[:5].sum() == 91  # the published counts for at most 4, 5, 6 nodes
    assert by_nodes[:6].sum() == 2_532
    assert by_nodes[:7].sum() == 64_542


def test_enumerated_cells_are_canonical_and_have_different_keys(enumerated):
    sample = enumerated[::1500]
    assert [SPACE.canonical(c) for c in sample] == sample
    for cell in sample:
        SPACE.check(cell)
    assert len({SPACE.key(c) for c in sample}) == len(sample)


@pytest.mark.shared
def test_keys_are_those_of_the_benchmark(enumerated, shared_data):
    table = pd.read_parquet(shared_data / "nas/nb101_space.parquet", columns=["hash_bin"])
    published = {h.hex() for h in table["hash_bin"]}
    assert len(published) == 423_624
    assert {SPACE.key(c) for c in enumerated[::20]} <= published


@pytest.mark.shared
def test_weights_are_those_of_the_benchmark(shared_data):
    table = pd.read_parquet(shared_data / "nas/nb101_subset30k.parquet").iloc[::100]
    for row in table.itertuples():
        cell = NB101Cell(tuple(map(int, row.adj_upper)), tuple(map(int, row.ops)))
        assert SPACE.key(cell) == row.hash
        assert SPACE.size_features(cell)["params"] == row.params


def test_official_specification_is_read():
    cell = SPACE.from_matrix(DIAMOND, NAMES)
    assert cell == NB101Cell((1, 1, 0, 0, 1, 1), (0, 2))
    text = '{"module_adjacency": [[0,1],[0,0]], "module_operations": ["input", "output"]}'
    assert SPACE.parse(text) == NB101Cell((1,), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, o: (m[:3], o), "4 by 4"),
        (lambda m, o: ([row[:3] for row in m], o), "4 by 4"),
        (lambda m, o: (m, [*o[:1], "conv7x7", *o[2:]]), "unknown operation 'conv7x7'"),
        (lambda m, o: (m, [*o[:3], "input"]), "the last 'output'"),
        (lambda m, o: ([[0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], o), "cyclic or unsorted"),
        (lambda m, o: ([[0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], o), "cyclic or unsorted"),
        (lambda m, o: ([[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]], o), r"disconnected.*\[2\]"),
        (lambda m, o: ([[0, 1, 2, 0], *m[1:]], o), "0 and 1 only, got int 2 in row 0, column 2"),
        (lambda m, o: ([[0, 1, 1], *m[1:]], o), r"need a 4 by 4 adjacency matrix, got rows of lengths \[3, 4, 4, 4\]"),
        (lambda m, o: ([], o), "need a 4 by 4 adjacency matrix, got 0 by 0"),
        (lambda m, o: (None, o), "a list of rows, each a list of 0 and 1, got NoneType"),
        (lambda m, o: ([None, *m[1:]], o), "a list of rows"),
        (lambda m, o: (["0110", *m[1:]], o), "a list of rows"),
        (lambda m, o: ({0: m[0]}, o), "a list of rows, each a list of 0 and 1, got dict"),
        (lambda m, o: ([{0, 1, 2, 3}, *m[1:]], o), "a list of rows"),
        (lambda m, o: ([[0, "1", 1, 0], *m[1:]], o), "0 and 1 only, got str '1' in row 0, column 1"),
        (lambda m, o: ([[0, [1], 1, 0], *m[1:]], o), r"0 and 1 only, got list \[1\]"),
        (lambda m, o: ([[0, float("nan"), 1, 0], *m[1:]], o), "0 and 1 only, got float nan"),
        (lambda m, o: (np.zeros((4, 4, 4)), o), "0 and 1 only, got ndarray"),
        (lambda m, o: (m, None), "a list of names, input and output included, got NoneType"),
        (lambda m, o: (m, "input"), "a list of names"),
        (lambda m, o: (m, [*o[:1], 3, *o[2:]]), "a list of names"),
        (lambda m, o: (m, [*o[:1], ["conv3x3-bn-relu"], *o[2:]]), "a list of names"),
    ],
)
def test_bad_specifications_name_the_rule(change, message):
    with pytest.raises(ValueError, match=message):
        SPACE.from_matrix(*change(DIAMOND, NAMES))


@pytest.mark.parametrize("made", [np.array, lambda m: [np.array(r, bool) for r in m], lambda m: tuple(map(tuple, m))])
def test_a_matrix_may_be_an_array_or_rows_of_any_sequence(made):
    assert SPACE.from_matrix(made(DIAMOND), tuple(NAMES)) == SPACE.from_matrix(DIAMOND, NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"module_adjacency": [[0,1],[0]], "module_operations": ["input", "output"]}', r"rows of lengths \[2, 1\]"),
        ('{"module_adjacency": 5, "module_operations": ["input", "output"]}', "a list of rows"),
        ('{"module_adjacency": [[0,1],[0,0]], "module_operations": 3}', "a list of names"),
        ('{"module_adjacency": ' + "[" * 100_000, "an nb101 cell in JSON has module_adjacency"),
    ],
)
def test_bad_json_names_the_rule(text, message):
    with pytest.raises(ValueError, match=message):
        SPACE.parse(text)


def test_too_many_edges_and_nodes_are_refused():
    full = tuple([1] * 21)
    with pytest.raises(ValueError, match="at most 9 edges, got 21"):
        SPACE.check(NB101Cell(full, (0, 0, 0, 0, 0)))
    with pytest.raises(ValueError, match="2 to 7 nodes, got 8"):
        SPACE.check(NB101Cell(full, (0,) * 6))
    with pytest.raises(ValueError, match="edge bits"):
        SPACE.check(NB101Cell((1, 0), (0,)))


def test_pruning_drops_what_no_path_uses():
    matrix = np.array([[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert prune(matrix, (1, 2)) == NB101Cell((1, 0, 1), (1,))
    with pytest.raises(ValueError, match="no path leads from input to output"):
        prune(np.zeros((3, 3), int), (1,))


def test_small_cells_travel_in_the_common_sequence():
    for cell in (NB101Cell((1,), ()), NB101Cell((1, 0, 1), (2,)), NB101Cell((1, 1, 0, 0, 1, 1), (0, 2))):
        assert SPACE.decode(SPACE.encode(cell)) == cell


def test_isomorphic_cells_have_one_key_and_others_not():
    left = NB101Cell((1, 1, 0, 0, 1, 1), (0, 2))
    right = NB101Cell((1, 1, 0, 0, 1, 1), (2, 0))
    other = NB101Cell((1, 1, 0, 0, 1, 1), (0, 1))
    assert SPACE.key(left) == SPACE.key(right) != SPACE.key(other)
    assert SPACE.canonical(left) == SPACE.canonical(right)
    assert matrix_of(left).sum() == 4
