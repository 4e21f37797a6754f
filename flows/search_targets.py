"""What a search asks, and which searches ask it: targets with their oracles, and the runs on each."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from core.data.tasks import load_task
from core.nas.oracles import get_oracle
from core.nas.searchers import SEARCHERS
from core.nas.searchers.pareto import LATENCY
from core.nas.spaces import Space, get_space
from flows.own_tables import STUDENT, Side
from tasks.learn_source import OracleConfig
from tasks.load_table import Checked
from tasks.search_architectures import SearchConfig, model_in
from tasks.stage import Artifact, is_planning

if TYPE_CHECKING:
    from flows.search import SearchForm

TWIN, WITHOUT = "predictor_eager", "no source"  # the search that every gain is over, and its name in rows
ON_FEATURES = ("transfer", "pareto")  # take sources, but work in no latent space


@dataclass(frozen=True)
class Target:
    """A space, who answers there, how many queries a run has, and how many runs each search."""

    label: str
    space: Space
    oracle: OracleConfig
    queries: int
    seeds: int = 1
    closed: bool = False
    metric: str = "test"


def targets(form: "SearchForm", own: Mapping[Side, Checked], model: Artifact | None = None) -> list[Target]:
    """The user's own table; or a space in which every query is work, and a graph table, where the gate is shown.

    Args:
        model: what students are cut from (a plan has not loaded it, and names the space of MiniLM-L6).
    """
    if "target" in own:
        table = own["target"].table
        oracle = OracleConfig(name="table", settings=table.settings)
        space = get_space(table.space)
        return [Target(table.file, space, oracle, form.queries, form.seeds, True, form.target_test)]
    graphs = OracleConfig(name="nasbench-graph", settings={"dataset": form.graph})
    worked, graph = _worked(form), get_space("nasbench-graph")
    loaded = model is not None and not is_planning()
    space = worked.open(**model_in(model)).space if loaded else get_space(form.target)
    name = f"{form.target} of {Path(form.model).name}" if form.model else form.target
    return [
        Target(f"{name} on {form.task}", space, worked, form.queries),
        Target(f"graph {form.graph}", graph, graphs, form.graph_queries, form.seeds, True),
    ]


def check_cost(form: "SearchForm", own: Mapping[Side, Checked]) -> None:
    """Refuse a latency that nobody knows.

    Raises:
        ValueError: the target is the user's own table or a student, and ``pareto`` should weigh its latency.
    """
    if form.cost == LATENCY and "pareto" in form.searches and ("target" in own or form.target == STUDENT):
        what = "an own table" if "target" in own else f"a {STUDENT}"
        raise ValueError(
            f"cost={LATENCY} for the search pareto, but the target is {what}, of which no latency is known; a target "
            "that is trained (nb101, nb201, darts) is timed; else give cost=params or cost=flops"
        )


def check_data(form: "SearchForm") -> None:
    """Refuse data of which no query can be answered.

    Raises:
        ValueError: what is wrong with it.
    """
    if form.target != STUDENT:
        get_oracle("training", **_worked(form).settings)
        return
    kind = load_task(form.task).kind
    if kind not in ("single", "pair"):
        raise ValueError(f"task {form.task} is of kind {kind}; a {STUDENT} needs texts with classes")


def _worked(form: "SearchForm") -> OracleConfig:
    """The oracle that answers by training a cell, or by distilling a student."""
    if form.target == STUDENT:
        settings = {"epochs": form.epochs, "unlabelled": form.images}
        return OracleConfig(name="student", settings={"task": form.task, "settings": settings})
    settings = {"epochs": form.epochs, "train_examples": form.images, "patience": 4, "batch_size": 16}
    return OracleConfig(name="training", settings={"space": form.target, "data": form.task, "settings": settings})


def check_searches(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        ValueError: an unknown one, or none.
    """
    if not names:
        raise ValueError(f"give at least one search; allowed: {', '.join(SEARCHERS.names())}")
    for name in names:
        SEARCHERS.entry(name)
    return tuple(dict.fromkeys(names))


def with_twin(names: tuple[str, ...]) -> tuple[str, ...]:
    """The searches with the one that has no source: without it nobody could say what a source gained."""
    return tuple(dict.fromkeys((*names, TWIN)))


def needs_latents(name: str) -> bool:
    """Whether a search works in latent spaces (one of a plug-in that says nothing gets all there is)."""
    return SEARCHERS.entry(name).facts.get("uses") not in ("nothing", "sizes") and name not in ON_FEATURES


def needs_sources(name: str) -> bool:
    return SEARCHERS.entry(name).facts.get("uses") not in ("nothing", "sizes", "encoder")


Runs = list[tuple[SearchConfig, dict[str, list[Artifact]]]]


def runs(form: "SearchForm", target: Target, sources: list[Artifact], latents: list[Artifact]) -> Runs:
    """Every search on one target, each seed: its configuration, and what it is given."""
    offered = {"mapping": form.mapping, "cost": form.cost}
    made: Runs = []
    for name in with_twin(form.searches):
        takes = signature(SEARCHERS.get(name)).parameters
        given = {
            "sources": sources if needs_sources(name) else [],
            "latents": latents if needs_latents(name) else [],
        }
        for seed in range(form.seed, form.seed + target.seeds):
            config = SearchConfig(
                label=WITHOUT if name == TWIN else name,
                oracle=target.oracle,
                closed=target.closed,
                searcher=name,
                settings={key: value for key, value in offered.items() if key in takes},
                prior=form.prior,
                queries=target.queries,
                population=form.population,
                metric=target.metric,
                seed=seed,
            )
            made.append((config, given))
    return made
