"""What an earlier run's relation graph still says once some of its experts were replaced under the same name."""

from collections.abc import Sequence

from core.merge.relation import RelationGraph


def without_replaced(graph: RelationGraph, replaced: Sequence[str]) -> RelationGraph:
    """A copy in which the replaced experts and their tasks have other names, so that nothing of theirs is taken over.

    :func:`core.merge.emfto.take_over` matches by name: it would give a new expert the synergies and coefficients of the
    old one, and explain answers about a task by coefficients of an expert that did not give them.

    Args:
        replaced: experts of the graph whose weights are others now.

    Raises:
        ValueError: the graph has no such expert.
    """
    unknown = set(replaced) - set(graph.experts)
    if unknown:
        raise ValueError(f"the graph has no experts {sorted(unknown)}; it has {', '.join(graph.experts)}")
    experts = {name: _other(name, graph.experts) for name in replaced}
    owned = [t for t, owner in zip(graph.tasks, graph.owners, strict=True) if owner in experts]
    tasks = {name: _other(name, graph.tasks) for name in owned}
    names = {"expert": experts, "task": tasks}

    def node(kind: str, name: str) -> list[str]:
        return [kind, names[kind].get(name, name)]

    def per_task(values: dict) -> dict:
        return {tasks.get(t, t): v for t, v in values.items()}

    state = graph.state_dict()
    copy = RelationGraph(
        [experts.get(e, e) for e in graph.experts],
        [tasks.get(t, t) for t in graph.tasks],
        [experts.get(o, o) if o else o for o in graph.owners],
        graph.rate,
        graph.kappa,
    )
    solved = [
        {
            **s,
            "form": {**s["form"], "tasks": [tasks.get(t, t) for t in s["form"]["tasks"]]},
            "task_scores": per_task(s["task_scores"]),
        }
        for s in state["solved"]
    ]
    edges = [[node(*a), node(*b), facts] for a, b, facts in state["edges"]]
    answers = [{**a, "tasks": per_task(a["tasks"])} for a in state["answers"]]
    copy.load_state_dict({"edges": edges, "answers": answers, "solved": solved})
    return copy


def _other(name: str, taken: Sequence[str]) -> str:
    """A name like ``name`` that is not taken."""
    while name in taken:
        name += " (replaced)"
    return name
