"""Search an architecture in one space with what another space taught."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from core.nas.encoder import EncoderConfig
from core.nas.mapping import MAPPINGS
from core.nas.oracles import get_oracle
from core.nas.oracles.nasbench_graph import DATASETS as GRAPHS
from core.transfer.problem import Problem
from flows.own_tables import HOME, OwnTables, Side, checked
from flows.runtime import transfer_flow
from tasks.earlier import LATEST, latest, outputs
from tasks.encode_architectures import EncodeConfig, encode
from tasks.fan_out import gather
from tasks.learn_source import (
    LearnConfig,
    OracleConfig,
    TrialsConfig,
    by_target,
    learn,
    learn_from_search,
    read_source,
)
from tasks.load_table import Checked, load_table
from tasks.map_latent_spaces import MapConfig, map_spaces
from tasks.report_search import ReportConfig, report_search
from tasks.search_architectures import SearchConfig, search
from tasks.stage import Artifact


class SearchForm(OwnTables):
    """What is searched with which knowledge."""

    sizes: ClassVar = {
        "smoke": {
            "graph": "proteins",
            "queries": 2,
            "graph_queries": 8,
            "seeds": 1,
            "labels": 400,
            "images": 60,
            "epochs": 1,
            "encoder_steps": 10,
            "encoder_cells": 60,
            "population": 200,
        },
        "default": {
            "graph": "arxiv",
            "queries": 12,
            "graph_queries": 25,
            "seeds": 3,
            "labels": 4000,
            "images": 160,
            "epochs": 5,
            "encoder_steps": 120,
            "encoder_cells": 2000,
            "population": 1500,
        },
        "full": {
            "graph": "arxiv",
            "queries": 50,
            "graph_queries": 100,
            "seeds": 10,
            "labels": 8000,
            "images": 1200,
            "epochs": 20,
            "encoder_steps": 2000,
            "encoder_cells": 8000,
            "population": 1500,
        },
    }

    images: int | None = Field(None, ge=30, description="training images of a query (empty: by size)")
    data: str = Field("digits", description="image task of a query: built-in, or a YAML (folder, arrays)")
    graph: Literal[GRAPHS] | None = Field(
        None, description="graph data set on which the gate is shown (empty: by size)"
    )
    mapping: Literal["linear", "none", "random"] = Field("linear", description="map between the latent spaces")
    prior: bool = Field(False, description="parameters and FLOPs compete as experts")
    pareto: bool = Field(False, description="also search accuracy and parameters together")
    queries: int | None = Field(None, ge=1, description="true queries of the target a run (empty: by size)")
    graph_queries: int | None = Field(None, ge=1, description="table queries of the second target (empty: by size)")
    seeds: int | None = Field(None, ge=1, description="runs on the graph table, or on an own one (empty: by size)")
    labels: int | None = Field(None, ge=50, description="labelled source cells (empty: by size)")
    epochs: int | None = Field(None, ge=1, description="longest training of a query in epochs (empty: by size)")
    encoder_steps: int | None = Field(None, ge=1, description="most training steps of an encoder (empty: by size)")
    encoder_cells: int | None = Field(None, ge=50, description="cells an encoder learns from (empty: by size)")
    population: int | None = Field(
        None, ge=100, description="cells drawn of a space that is not enumerated (empty: by size)"
    )
    seed: int = Field(0, ge=0, description="weights, draws and order")


def problem(form: SearchForm) -> Problem:
    """What this search transfers."""
    source, target = form.own("source"), form.own("target")
    space = target.space if target else form.target
    taught = f"NAS-Bench-201 table, {form.source}, {form.labels} labelled cells"
    built = f"an architecture of {form.target}, trained on {form.data}; a graph network on {form.graph}"
    decides = "validation accuracy of a real training; of the table for the graph space"
    budget = f"{form.queries} trainings a run, {form.graph_queries} table queries (queries)"
    domain = f"{source.space if source else HOME} -> {space}"
    if form.source == LATEST:
        taught = "the latest finished search: its source, and its own trials"
    if source:
        taught = f"{source.file} ({source.space}, {source.answer}), at most {form.labels} labelled cells"
    if target:
        built, decides = f"a cell of {target.file} ({target.space})", f"{target.answer} of {target.file}"
        budget = f"{form.queries} cells of {target.file} a run (queries)"
    return Problem(
        source=taught,
        target=built,
        knowledge="a rank predictor on space-independent features, elites, latent spaces",
        domain=domain if target else f"{domain}, {source.space if source else HOME} -> nasbench-graph",
        objective=decides,
        budget=f"{budget}; source {source.file}" if source else budget,
    )


@transfer_flow(
    "search",
    level="structure",
    parameters=SearchForm,
    problem=problem,
    title="Search an architecture with what another search space taught",
    headline=("score",),
)
def search_flow(form: SearchForm) -> Artifact:
    MAPPINGS.get(form.mapping)
    own = checked(form, form.queries)
    if "target" not in own:
        get_oracle("training", **_training(form))  # refuses images that no cell can be trained on
    tables = {side: load_table(checked) for side, checked in own.items()}
    sources = _sources(form, own, tables)
    source, home = sources[0], _home(form, sources[0])
    sizes = EncoderConfig(
        steps=form.encoder_steps, rank_steps=form.encoder_steps // 5, every=50, width=32, feedforward=64
    )
    shape = {"cells": form.encoder_cells, "shown": min(1000, form.encoder_cells), "encoder": sizes, "seed": form.seed}
    here = encode(EncodeConfig(space=home, **shape), source=[source])
    there = encode(EncodeConfig(space=form.target_space or form.target, **shape), source=[])
    mapped = map_spaces(MapConfig(mapping=form.mapping, seed=form.seed), source=source, here=here, there=there)
    answers = {"table": tables["target"]} if "target" in own else {}  # of a built-in target the oracle has its own
    planned = _own_runs(form, own["target"], sources) if answers else _built_in_runs(form, sources)
    done = gather(
        {
            (target, number): search.submit(config, sources=given, latents=[], **answers)
            for target, runs in planned.items()
            for number, (config, given) in enumerate(runs)
        }
    )
    searches = {target: [done[target, i] for i in range(len(runs))] for target, runs in planned.items()}
    config = ReportConfig(title=_title(form, own, home), facts=_facts(form, own, sources))
    return report_search(config, searches=searches, mapped=mapped, **answers)


def _home(form: SearchForm, source: Artifact) -> str:
    """The space in which the first source was learned."""
    if form.source == LATEST:
        return read_source(source).space
    return form.source_space or HOME


def _title(form: SearchForm, own: dict[Side, Checked], home: str) -> str:
    there = own["target"].table.file if "target" in own else f"{form.target} and to graph networks"
    return f"Architecture search: {home} to {there}"


def _facts(form: SearchForm, own: dict[Side, Checked], sources: list[Artifact]) -> dict[str, str]:
    """What a reader of the report must know at once."""
    told = f"nb201 {form.source}, {form.labels} labels"
    if form.source == LATEST:
        told = "earlier searches: " + ", ".join(f"{a.name} of run {a.run[:8]}" for a in sources)
    if "source" in own:
        told = f"{own['source']}, {min(form.labels, own['source'].rows):,} labels"
    target = {"target": f"{own['target']}; closed pool: no other cell can be asked"} if "target" in own else {}
    return {"source": told, **target, "size": form.size, "seed": str(form.seed)}


def _sources(form: SearchForm, own: dict[Side, Checked], tables: dict[Side, Artifact]) -> list[Artifact]:
    """What teaches; the first source is at home in the space of the table."""
    shared = {"labels": form.labels, "seed": form.seed}
    if "source" in own:
        table = own["source"].table
        oracle = OracleConfig(name="table", settings=table.settings)
        config = LearnConfig(name=f"{table.space} {table.file}", oracle=oracle, **shared)
        return [learn(config, table=tables["source"])]
    if form.source != LATEST:
        oracle = OracleConfig(name="nb201", settings={"dataset": form.source})
        return [learn(LearnConfig(name=f"nb201 {form.source}", oracle=oracle, **shared))]
    own_trials = by_target(outputs("search", "search-architectures"))
    learned = [
        learn_from_search(TrialsConfig(name=f"{LATEST}: {target}", seed=form.seed), searches=own_trials[target])
        for target in sorted(own_trials)
    ]
    return [latest("search", "learn-source"), *learned]


Runs = list[tuple[SearchConfig, list[Artifact]]]


def _built_in_runs(form: SearchForm, sources: list[Artifact]) -> dict[str, Runs]:
    return {
        f"{form.target} on {form.data}": _trainings(form, sources),
        f"graph {form.graph}": _graphs(form, sources),
    }


def _arms(form: SearchForm, sources: list[Artifact]) -> list[tuple[str, str, list[Artifact]]]:
    """With source, without, at random: label, searcher, sources."""
    arms = [("transfer", "transfer", sources), ("no source", "predictor_eager", []), ("random", "random", [])]
    return arms + ([("pareto", "pareto", sources)] if form.pareto else [])


def _training(form: SearchForm) -> dict[str, Any]:
    """Settings of the oracle that answers by training."""
    settings = {"epochs": form.epochs, "train_examples": form.images, "patience": 4, "batch_size": 16}
    return {"space": form.target, "data": form.data, "settings": settings}


def _trainings(form: SearchForm, sources: list[Artifact]) -> Runs:
    """Every query is a training."""
    oracle = OracleConfig(name="training", settings=_training(form))
    shared = {"oracle": oracle, "closed": False, "queries": form.queries, "population": form.population}
    shared |= {"metric": "test", "seed": form.seed}
    return [
        (SearchConfig(label=label, searcher=name, prior=form.prior, **shared), given)
        for label, name, given in _arms(form, sources)
    ]


def _own_runs(form: SearchForm, target: Checked, sources: list[Artifact]) -> dict[str, Runs]:
    """Every query is a look-up in the user's own table: the same searches as of trainings, over several seeds."""
    oracle = OracleConfig(name="table", settings=target.table.settings)
    shared = {"oracle": oracle, "closed": True, "queries": form.queries, "metric": form.target_test}
    runs = [
        (SearchConfig(label=label, searcher=name, prior=form.prior, seed=form.seed + s, **shared), given)
        for label, name, given in _arms(form, sources)
        for s in range(form.seeds)
    ]
    return {target.table.file: runs}


def _graphs(form: SearchForm, sources: list[Artifact]) -> Runs:
    """Convolution cells teach little about graph networks: the gate should say so."""
    oracle = OracleConfig(name="nasbench-graph", settings={"dataset": form.graph})
    shared = {"oracle": oracle, "closed": True, "queries": form.graph_queries, "metric": "test"}
    runs = [("transfer", "transfer", sources), ("no source", "predictor", []), ("random", "random", [])]
    return [
        (SearchConfig(label=label, searcher=name, seed=form.seed + s, **shared), given)
        for label, name, given in runs
        for s in range(form.seeds)
    ]
