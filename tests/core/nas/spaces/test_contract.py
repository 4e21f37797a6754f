"""What every registered space promises."""

import itertools
import json

import networkx as nx
import numpy as np
import pytest

from core.nas.spaces import CLS, END, OPS, SPACES, get_space

NAMES = SPACES.names()


@pytest.fixture(params=NAMES)
def space(request):
    return get_space(request.param)


@pytest.fixture
def cells(space):
    rng = np.random.default_rng(7)
    return [space.sample(rng) for _ in range(25)]


def test_the_five_spaces_are_registered():
    assert {"nb101", "nb201", "darts", "nasbench-graph", "transformer-student"} <= set(NAMES)


def test_samples_are_valid_hashable_and_varied(space, cells):
    for cell in cells:
        space.check(cell)
        assert isinstance(cell, space.genotype)
    assert len({space.key(c) for c in cells}) > 15


def test_sampling_depends_on_the_seed_alone(space, cells):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    rng = np.random.default_rng(7)
    assert [space.sample(rng) for _ in range(25)] == cells
    assert (np.random.get_state()[1] == before).all()
    mutants = [[space.mutate(c, np.random.default_rng(5)) for c in cells] for _ in range(2)]
    assert mutants[0] == mutants[1]


def test_tokens_spell_the_cell_and_nothing_else(space, cells):
    for cell in cells:
        tokens = space.encode(cell)
        assert tokens.shape == (space.token_length,)
        assert np.issubdtype(tokens.dtype, np.integer)
        assert space.vocabulary[tokens[0]] == CLS
        assert space.vocabulary[tokens[-1]] == END
        assert space.key(space.decode(tokens)) == space.key(cell)
        canonical = space.canonical(cell)
        assert space.decode(space.encode(canonical)) == canonical


def test_text_is_read_back(space, cells):
    for cell in cells:
        assert space.parse(space.format(cell)) == cell
        assert "\n" not in space.format(cell)


def test_key_and_canonical_form_ignore_names_of_nodes(space, cells):
    rng = np.random.default_rng(1)
    for cell in cells:
        other = space.relabel(cell, rng)
        space.check(other)
        assert space.key(other) == space.key(cell)
        assert space.canonical(other) == space.canonical(cell)
        assert space.key(space.canonical(cell)) == space.key(cell)
        same = nx.is_isomorphic(
            space.graph(other),
            space.graph(cell),
            node_match=lambda a, b: (a["op"], a.get("cell")) == (b["op"], b.get("cell")),
        )
        assert same


def test_size_does_not_depend_on_names_of_nodes(space, cells):
    rng = np.random.default_rng(2)
    for cell in cells:
        size = space.size_features(cell)
        assert set(size) == {"params", "flops"}
        assert size["params"] >= 0
        assert space.size_features(space.canonical(space.relabel(cell, rng)))["params"] == pytest.approx(
            size["params"], rel=0.01
        )


def test_mutation_moves_to_a_valid_neighbour(space, cells):
    rng = np.random.default_rng(3)
    for cell in cells[:6]:
        around = space.neighbours(cell)
        keys = [space.key(n) for n in around]
        assert space.key(cell) not in keys
        assert len(set(keys)) == len(keys) > 3
        for neighbour in around:
            space.check(neighbour)
        mutant = space.mutate(cell, rng)
        assert space.key(mutant) in keys


@pytest.mark.parametrize("name", ["nb201", "darts", "transformer-student"])
def test_neighbourhood_is_symmetric(name):
    """Not so where an edit may drop several nodes at once (nb101) or a skip swallows another (nasbench-graph)."""
    space = get_space(name)
    cell = space.canonical(space.sample(np.random.default_rng(11)))
    for neighbour in space.neighbours(cell)[::7]:
        assert space.key(cell) in {space.key(n) for n in space.neighbours(neighbour)}


def test_crossover_takes_from_both_parents(space, cells):
    rng = np.random.default_rng(4)
    children = [space.crossover(a, b, rng) for a, b in itertools.pairwise(cells)]
    for child in children:
        space.check(child)
    parents = {space.key(c) for c in cells}
    assert sum(space.key(c) not in parents for c in children) > 8


def test_graph_speaks_the_common_vocabulary(space, cells):
    for cell in cells:
        graph = space.graph(cell)
        assert nx.is_directed_acyclic_graph(graph)
        assert {data["op"] for _, data in graph.nodes(data=True)} <= set(OPS)


def test_genotype_of_another_space_is_refused(space):
    rng = np.random.default_rng(0)
    for name in NAMES:
        if name != space.name:
            with pytest.raises(ValueError, match="genotype of another space"):
                space.check(get_space(name).sample(rng))
    with pytest.raises(ValueError, match="genotype of another space"):
        space.check((0, 1, 2))


def genotypes_with(name, value):
    """Genotypes of a space with ``value`` in the place of each of their parts."""
    darts, valid = get_space("darts").genotype, ((0, 0), (1, 0)) * 4
    return {
        "nb101": lambda cell: [cell(value, (0,)), cell((1, 0, 1), value)],
        "nb201": lambda cell: [cell(value)],
        "darts": lambda cell: [darts(value, valid), darts(valid, (value,) * 8), darts(((0, value), *valid[1:]), valid)],
        "nasbench-graph": lambda cell: [cell(value, (0,) * 4), cell((0,) * 4, value)],
        "transformer-student": lambda cell: [cell(value), cell((value,) * 6), cell(((value, 384),) * 6)],
    }[name](get_space(name).genotype)


WRONG = [None, "110", [0, 1], {0: 1}, np.zeros(6, int), *((v,) * 6 for v in (1.0, True, "0", [0], float("nan")))]


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_genotypes_of_the_wrong_type_name_the_rule(space, value):
    for cell in genotypes_with(space.name, value):
        with pytest.raises(ValueError, match=rf"must be a tuple|must be integers|{space.name}|keeps at least one"):
            space.check(cell)


@pytest.mark.parametrize("text", [None, 5, b"nb201", ["a"]])
def test_what_is_no_text_is_refused(space, text):
    with pytest.raises(ValueError, match=f"{space.name} reads a genotype from text, got {type(text).__name__}"):
        space.parse(text)


@pytest.mark.parametrize("token", [0.5, 1.0, None, "a", [0]])
def test_tokens_that_are_no_whole_numbers_are_refused(space, cells, token):
    tokens = [*space.encode(cells[0])[:-1], token]
    with pytest.raises(ValueError, match=f"{space.name} has sequences of whole numbers"):
        space.decode(tokens)
    with pytest.raises(ValueError, match=f"{space.name} has sequences of whole numbers"):
        space.decode(None)


@pytest.mark.parametrize("text", ["", "nonsense", "|a~0|+|b~0|c~1|", "{", "[]", "0,0,0,0", "1 2 3", "((1,),)"])
def test_foreign_text_is_refused(space, text):
    with pytest.raises(ValueError, match=r"\w"):
        space.parse(text)


def test_broken_tokens_are_refused(space, cells):
    tokens = space.encode(cells[0])
    for broken in (tokens[:-1], np.append(tokens, 1), tokens * 0, np.full_like(tokens, 999), -tokens - 1):
        with pytest.raises(ValueError, match=space.name):
            space.decode(broken)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nb210", {}, "did you mean 'nb201'"),
        ("nb201", {"layers": 2}, "nb201 has none"),
        ("darts", {"layer": 2}, "no setting 'layer', did you mean 'layers'"),
        ("darts", {"layers": 0}, "at least 1"),
        ("darts", {"channels": "many"}, "must be integers, got str 'many'"),
        ("transformer-student", {"layers": 2.0}, "must be integers, got float 2.0"),
        ("transformer-student", {"width": None}, "must be integers, got NoneType"),
        ("transformer-student", {"heads": (1.5, 2)}, "heads must be integers"),
        ("transformer-student", {"heads": 4}, "cannot have the settings"),
        ("transformer-student", {"neurons": ()}, "ascending positive"),
    ],
)
def test_settings_beyond_the_space_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        get_space(name, **settings)


def test_spaces_are_told_apart_by_name_and_settings(space):
    again = get_space(space.name, **space.settings)
    assert space == again
    assert hash(space) == hash(again)
    assert space.full_name == space.name
    assert all(space != get_space(name) for name in NAMES if name != space.name)
    assert space != space.name


def test_a_space_of_other_settings_is_another():
    small, twin = (get_space("transformer-student", layers=2, heads=heads) for heads in ((4, 12), [4, 12]))
    assert small == twin
    assert small.full_name == "transformer-student(layers=2, heads=[4, 12])"
    assert small != get_space("transformer-student")
    assert len({small, twin, get_space("transformer-student")}) == 2
    assert get_space("darts", layers=20) != get_space("darts")


def test_neighbours_are_those_of_the_architecture_not_of_its_description(space, cells):
    rng = np.random.default_rng(2)
    for cell in cells[:8]:
        other = space.relabel(cell, rng)
        assert [space.key(n) for n in space.neighbours(other)] == [space.key(n) for n in space.neighbours(cell)]


def test_a_space_is_built_again_from_its_settings(space, cells):
    again = get_space(space.name, **json.loads(json.dumps(space.settings)))
    assert again.settings == space.settings
    assert [again.size_features(c) for c in cells] == [space.size_features(c) for c in cells]
