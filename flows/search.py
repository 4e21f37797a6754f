"""Search an architecture in one space with what another space taught."""

from typing import ClassVar, Literal

from pydantic import Field

from core.data.tasks import load_task
from core.nas.encoder import EncoderConfig
from core.nas.mapping import MAPPINGS
from core.nas.oracles.nasbench_graph import DATASETS as GRAPHS
from core.transfer.problem import Problem
from flows.forms import Form
from flows.runtime import transfer_flow
from tasks.earlier import LATEST, latest, outputs
from tasks.encode_architectures import EncodeConfig, encode
from tasks.fan_out import gather
from tasks.learn_source import LearnConfig, OracleConfig, TrialsConfig, by_target, learn, learn_from_search
from tasks.map_latent_spaces import MapConfig, map_spaces
from tasks.report_search import ReportConfig, report_search
from tasks.search_architectures import SearchConfig, search
from tasks.stage import Artifact


class SearchForm(Form):
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
            "graph_queries": 40,
            "seeds": 3,
            "labels": 4000,
            "images": 300,
            "epochs": 8,
            "encoder_steps": 200,
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

    source: Literal["cifar10", "cifar100", "imagenet16", "latest"] = Field(
        "cifar10",
        description="data set of the NAS-Bench-201 table that teaches; latest: what the last search knew and measured",
    )
    target: Literal["nb101", "darts"] = Field("nb101", description="space in which every query is a real training")
    images: int | None = Field(None, ge=30, description="training images of a query (empty: by size)")
    data: str = Field("digits", description="image task of a query: built-in, or a YAML (folder, arrays)")
    graph: Literal[GRAPHS] | None = Field(
        None, description="graph data set on which the gate is shown (empty: by size)"
    )
    mapping: Literal["linear", "none", "random"] = Field("linear", description="map between the latent spaces")
    prior: bool = Field(False, description="parameters and FLOPs compete as experts")
    pareto: bool = Field(False, description="also search accuracy and parameters together")
    queries: int | None = Field(None, ge=1, description="true trainings a run (empty: by size)")
    graph_queries: int | None = Field(None, ge=1, description="table queries of the second target (empty: by size)")
    seeds: int | None = Field(None, ge=1, description="runs on the graph table (empty: by size)")
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
    return Problem(
        source="the latest finished search: its source, and its own trials"
        if form.source == LATEST
        else f"NAS-Bench-201 table, {form.source}, {form.labels} labelled cells",
        target=f"an architecture of {form.target}, trained on {form.data}; a graph network on {form.graph}",
        knowledge="a rank predictor on space-independent features, elites, latent spaces",
        domain=f"nb201 -> {form.target}, nb201 -> nasbench-graph",
        objective="validation accuracy of a real training; of the table for the graph space",
        budget=f"{form.queries} trainings a run, {form.graph_queries} table queries (queries)",
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
    kind = load_task(form.data).kind
    if kind != "image":
        raise ValueError(f"data {form.data!r} is of kind {kind!r}; cells are trained on images (kind image)")
    sources = _sources(form)
    source = sources[0]
    sizes = EncoderConfig(
        steps=form.encoder_steps, rank_steps=form.encoder_steps // 5, every=50, width=32, feedforward=64
    )
    shape = {"cells": form.encoder_cells, "shown": min(1000, form.encoder_cells), "encoder": sizes, "seed": form.seed}
    here = encode(EncodeConfig(space="nb201", **shape), source=[source])
    there = encode(EncodeConfig(space=form.target, **shape), source=[])
    mapped = map_spaces(MapConfig(mapping=form.mapping, seed=form.seed), source=source, here=here, there=there)
    planned = {
        f"{form.target} on {form.data}": _trainings(form, sources),
        f"graph {form.graph}": _graphs(form, sources),
    }
    done = gather(
        {
            (target, number): search.submit(config, sources=given, latents=[])
            for target, runs in planned.items()
            for number, (config, given) in enumerate(runs)
        }
    )
    searches = {target: [done[target, i] for i in range(len(runs))] for target, runs in planned.items()}
    told = f"nb201 {form.source}, {form.labels} labels"
    if form.source == LATEST:
        told = "earlier searches: " + ", ".join(f"{a.name} of run {a.run[:8]}" for a in sources)
    facts = {"source": told, "size": form.size, "seed": str(form.seed)}
    config = ReportConfig(title=f"Architecture search: nb201 to {form.target} and to graph networks", facts=facts)
    return report_search(config, searches=searches, mapped=mapped)


def _sources(form: SearchForm) -> list[Artifact]:
    """What teaches; the first source is at home in the space of the table."""
    if form.source != LATEST:
        table = OracleConfig(name="nb201", settings={"dataset": form.source})
        return [learn(LearnConfig(name=f"nb201 {form.source}", oracle=table, labels=form.labels, seed=form.seed))]
    own = by_target(outputs("search", "search-architectures"))
    learned = [
        learn_from_search(TrialsConfig(name=f"{LATEST}: {target}", seed=form.seed), searches=own[target])
        for target in sorted(own)
    ]
    return [latest("search", "learn-source"), *learned]


def _trainings(form: SearchForm, sources: list[Artifact]) -> list[tuple[SearchConfig, list[Artifact]]]:
    """With source, without, at random; every query is a training."""
    training = {"epochs": form.epochs, "train_examples": form.images, "patience": 4, "batch_size": 16}
    oracle = OracleConfig(name="training", settings={"space": form.target, "data": form.data, "settings": training})
    shared = {"oracle": oracle, "closed": False, "queries": form.queries, "population": form.population}
    shared |= {"metric": "test", "seed": form.seed}
    runs = [("transfer", "transfer", sources), ("no source", "predictor_eager", []), ("random", "random", [])]
    runs += [("pareto", "pareto", sources)] if form.pareto else []
    return [
        (SearchConfig(label=label, searcher=name, prior=form.prior, **shared), given) for label, name, given in runs
    ]


def _graphs(form: SearchForm, sources: list[Artifact]) -> list[tuple[SearchConfig, list[Artifact]]]:
    """Convolution cells teach little about graph networks: the gate should say so."""
    oracle = OracleConfig(name="nasbench-graph", settings={"dataset": form.graph})
    shared = {"oracle": oracle, "closed": True, "queries": form.graph_queries, "metric": "test"}
    runs = [("transfer", "transfer", sources), ("no source", "predictor", []), ("random", "random", [])]
    return [
        (SearchConfig(label=label, searcher=name, seed=form.seed + s, **shared), given)
        for label, name, given in runs
        for s in range(form.seeds)
    ]
