"""An expert that was replaced under its task's name inherits nothing of the old one; what is kept is taken over."""

import numpy as np
import pytest

from core.merge.emfto import State, take_over
from core.merge.forms import Form, Solved
from core.merge.relation import RelationGraph
from core.merge.replaced import without_replaced
from core.merge.response import ResponseModel

NAMES = ("a", "b", "c")


class Space:
    experts, shape = NAMES, (3, 1)


def graph():
    found = RelationGraph(NAMES, NAMES, NAMES)
    found.set_synergy(np.array([[0, 0.3, 0.5], [0.3, 0, -0.4], [0.5, -0.4, 0]]))
    for pair in ((0, 1), (0, 2), (1, 2)):
        found.graph.edges[("expert", NAMES[pair[0]]), ("expert", NAMES[pair[1]])]["uncertainty"] = 0.2
    found.set_affinity(np.arange(9.0).reshape(3, 3))
    found.remember(np.array([[0.1], [0.2], [0.3]]), {t: (0.01 * i, 0.001) for i, t in enumerate(NAMES, 1)})
    found.solved.append(Solved(Form((0, 1), ("a", "b")), np.ones((3, 1)), 0.9, 0.8, 10.0, {"a": 0.9, "b": 0.8}))
    return found


def taken_over(source):
    state = State(
        RelationGraph(NAMES, NAMES, NAMES),
        ResponseModel(np.ones((3, 1)), NAMES, [0, 1, 2]),
        None,
        np.ones((3, 1)),
        np.ones((3, 1)),
        None,
        np.random.default_rng(0),
    )
    take_over(state, source, Space)
    return state


def test_a_replaced_expert_inherits_neither_coefficients_nor_synergies_nor_answers():
    state = taken_over(without_replaced(graph(), ["b"]))
    kept = state.graph.graph.edges[("expert", "a"), ("expert", "c")]
    assert (kept["synergy"], kept["uncertainty"]) == (0.5, 0.4)
    for other in ("a", "c"):
        fresh = state.graph.graph.edges[("expert", other), ("expert", "b")]
        assert (fresh["synergy"], fresh["uncertainty"]) == (0.0, 1.0)
    answers = dict(zip(NAMES, state.response.data, strict=True))
    assert answers["b"] == [], "what was said about its task was said of the old expert"
    for task, value in (("a", 0.01), ("c", 0.03)):
        ((offset, difference, _),) = answers[task]
        np.testing.assert_array_equal(offset, [0.1, 0.0, 0.3])
        assert difference == pytest.approx(value)


def test_without_the_names_changed_it_would_be_taken_for_the_old_one():
    state = taken_over(without_replaced(graph(), []))
    np.testing.assert_array_equal(state.response.data[1][0][0], [0.1, 0.2, 0.3])
    assert state.graph.graph.edges[("expert", "a"), ("expert", "b")]["synergy"] == 0.3


def test_the_graph_itself_stays_and_the_copy_is_whole(tmp_path):
    before = graph()
    told = before.state_dict()
    copy = without_replaced(before, ["b"])
    assert before.state_dict() == told
    assert copy.experts == copy.tasks == copy.owners == ("a", "b (replaced)", "c")
    np.testing.assert_array_equal(copy.matrix("synergy"), before.matrix("synergy"))
    np.testing.assert_array_equal(copy.affinity(), before.affinity())
    assert copy.solved[0].task_scores == {"a": 0.9, "b (replaced)": 0.8}
    copy.save(tmp_path / "graph.ckpt")
    assert RelationGraph.load(tmp_path / "graph.ckpt").experts == copy.experts
    again = without_replaced(without_replaced(graph(), ["b"]), ["b (replaced)"])
    assert len(set(again.experts)) == 3


def test_an_unknown_expert_is_refused():
    with pytest.raises(ValueError, match=r"no experts \['d'\]; it has a, b, c"):
        without_replaced(graph(), ["d"])
