import numpy as np
import pytest

from core.nas.spaces.darts import Darts, DartsCells

SPACE = Darts()
V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)
V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


@pytest.mark.parametrize(("genotype", "params"), [(V1, 3_169_414), (V2, 3_349_342)])
def test_weights_of_the_published_cells(genotype, params):
    """The authors' code prints 3.169414 MB and 3.349342 MB for 20 layers of 36 channels."""
    assert Darts(channels=36, layers=20).size_features(SPACE.parse(genotype))["params"] == params


def test_inputs_of_a_node_have_no_order():
    cell = SPACE.parse(V2)
    pairs = [cell.normal[i : i + 2][::-1] for i in range(0, 8, 2)]
    other = DartsCells(tuple(e for p in pairs for e in p), cell.reduce)
    assert SPACE.key(other) == SPACE.key(cell)


def test_interior_nodes_may_be_renamed():
    a = ((0, 3), (1, 3), (0, 2), (1, 0), (2, 1), (3, 1), (0, 4), (4, 4))
    b = ((0, 2), (1, 0), (0, 3), (1, 3), (3, 1), (2, 1), (0, 4), (4, 4))  # nodes 2 and 3 swapped
    assert SPACE.key(DartsCells(a, a)) == SPACE.key(DartsCells(b, a))
    assert SPACE.key(DartsCells(a, a)) != SPACE.key(DartsCells(a, ((0, 3), (1, 2), *a[2:])))


def test_normal_and_reduction_are_not_interchangeable():
    cell = SPACE.sample(np.random.default_rng(0))
    assert SPACE.key(DartsCells(cell.reduce, cell.normal)) != SPACE.key(cell)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (((0, 0), (1, 0)) * 3, "8 \\(input, operation\\) pairs"),
        (((0, 0), (1, 7), *((0, 0), (1, 0)) * 3), "unknown operation 7"),
        (((0, 0), (2, 0), *((0, 0), (1, 0)) * 3), "cyclic normal cell: node 2 takes inputs 0..1, got 2"),
        (((0, 0), (0, 1), *((0, 0), (1, 0)) * 3), "two different inputs"),
    ],
)
def test_bad_cells_name_the_rule(edges, message):
    with pytest.raises(ValueError, match=message):
        SPACE.check(DartsCells(tuple(edges), ((0, 0), (1, 0)) * 4))


def test_unknown_operation_in_text_is_named():
    with pytest.raises(ValueError, match="unknown operation 'sep_conv_7x7'"):
        SPACE.parse(V1.replace("sep_conv_3x3", "sep_conv_7x7"))


def test_a_printed_genotype_is_read_with_either_quote_and_a_range():
    cell = SPACE.parse(V1)
    assert SPACE.parse(V1.replace("'", '"')) == cell
    assert SPACE.parse(V1.replace("=", " = ").replace("[2, 3, 4, 5]", "range(2, 6)")) == cell


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("normal_concat=[2, 3, 4, 5]", "normal_concat=[4, 5]"),
            r"joins all its nodes \[2, 3, 4, 5\], got normal_concat",
        ),
        (("reduce_concat=[2, 3, 4, 5]", "reduce_concat=range(3, 6)"), "got reduce_concat"),
        (("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1.7)"), "is written Genotype"),
        (("('skip_connect', 2)], normal", "('skip_connect', 2), 'x'], normal"), "is written Genotype"),
        (("reduce=", "reduced="), "is written Genotype"),
        (("reduce=", "reduce=print(1) or "), "is written Genotype"),
    ],
)
def test_another_genotype_is_refused_and_not_read_as_a_cell_of_the_space(change, message):
    with pytest.raises(ValueError, match=message):
        SPACE.parse(V1.replace(*change))


def test_numbers_that_are_not_whole_are_refused_and_not_cut():
    text = f"({[(0, 3), (1, 3)] * 4}, {[(0, 3), (1, 3)] * 4})"
    assert SPACE.parse(text).normal == ((0, 3), (1, 3)) * 4
    with pytest.raises(ValueError, match=r"two lists of eight \(input, operation\) pairs"):
        SPACE.parse(text.replace("(0, 3)", "(0.7, 3)", 1))
