"""Search an architecture in one space with what another space taught."""

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from core.nas.encoder import EncoderConfig
from core.nas.oracles.nasbench_graph import DATASETS as GRAPHS
from core.nas.oracles.student import ORIGINAL
from core.nas.searchers.pareto import COSTS
from core.nas.spaces import Space, get_space
from core.transfer.problem import Problem
from flows.own_tables import HOME, STUDENT, OwnTables, Side, checked, checked_source
from flows.runtime import transfer_flow
from flows.search_targets import TWIN, WITHOUT, check_cost, check_data, check_searches, needs_latents, runs, targets
from tasks.earlier import LATEST, latest, outputs
from tasks.encode_architectures import EncodeConfig, SpaceConfig, encode
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
from tasks.load_model import load_model
from tasks.load_source import LOADED, SourceFile, load_source
from tasks.load_table import Checked, load_table
from tasks.map_latent_spaces import MapConfig, map_spaces
from tasks.package_sources import PackageSourcesConfig, package_sources
from tasks.report_search import ReportConfig, report_search
from tasks.search_architectures import search
from tasks.stage import Artifact


class SearchForm(OwnTables):
    """What is searched with which knowledge."""

    sizes: ClassVar = {
        "smoke": {
            "searches": ("transfer", TWIN, "random"),
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
            "searches": ("transfer", TWIN, "random", "bridge"),
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
            "searches": ("transfer", TWIN, "random", "bridge"),
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

    searches: tuple[str, ...] | None = Field(
        None,
        description="searches that spend the same budget each: transfer, bridge (evolution with elites carried over "
        "through the latent map), pareto, predictor, rea and other registered searchers; the one without source, "
        "predictor_eager, always runs (empty: by size)",
    )
    images: int | None = Field(
        None, ge=30, description="training images of a query, of a student texts without labels (empty: by size)"
    )
    data: str = Field(
        "",
        description="task of a query, built-in or a YAML: images (folder, arrays), for a student texts with classes "
        "(empty: digits, for a student mr_reviews)",
    )
    model: str = Field(
        "",
        description="model whose sub-networks the target transformer-student has: asset name, folder or hub name of a "
        "BERT- or Llama-like encoder or decoder (empty: MiniLM-L6)",
    )
    graph: Literal[GRAPHS] | None = Field(
        None, description="graph data set on which the gate is shown (empty: by size)"
    )
    mapping: Literal["linear", "none", "random", "shared"] = Field(
        "linear",
        description="map between the latent spaces, by which bridge carries elites over; shared: one encoder for all",
    )
    prior: bool = Field(False, description="parameters and FLOPs compete as experts")
    cost: Literal[COSTS] = Field(
        "params",
        description="what the search pareto weighs against accuracy; latency: of a table's column, or of the networks "
        "of the target timed on this machine",
    )
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

    @field_validator("searches")
    @classmethod
    def _searches_are_known(cls, searches: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if searches is None else check_searches(searches)

    @model_validator(mode="after")
    def _model_is_searched(self) -> Self:
        if self.model and self.target != STUDENT:
            raise ValueError(f"model is what target {STUDENT} cuts sub-networks of, but target is {self.target!r}")
        return self

    @property
    def task(self) -> str:
        """The task of a query."""
        return self.data or ("mr_reviews" if self.target == STUDENT else "digits")


def problem(form: SearchForm) -> Problem:
    """What this search transfers."""
    source, target, file = form.own("source"), form.own("target"), checked_source(form)
    space = target.space if target else form.target
    work = "distillation" if form.target == STUDENT else "training"
    taught, home = f"NAS-Bench-201 table, {form.source}, {form.labels} labelled cells", HOME
    built = f"an architecture of {form.target}, {work} on {form.task}; a graph network on {form.graph}"
    decides = f"validation accuracy of a real {work}; of the table for the graph space"
    budget = f"{form.queries} {work}s a run, {form.graph_queries} table queries (queries)"
    if form.source == LATEST:
        taught = "the latest finished search: its source, and its own trials"
    if file:
        taught, home = str(file), file.home.full_name
    if source:
        home = source.space
        taught = f"{source.file} ({source.space}, {source.answer}), at most {form.labels} labelled cells"
    if target:
        built, decides = f"a cell of {target.file} ({target.space})", f"{target.answer} of {target.file}"
        budget = f"{form.queries} cells of {target.file} a run (queries)"
    domain = f"{home} -> {space}"
    return Problem(
        source=taught,
        target=built,
        knowledge="a rank predictor on space-independent features, elites, latent spaces and the map between them",
        domain=domain if target else f"{domain}, {home} -> nasbench-graph",
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
    file, own = checked_source(form), checked(form, form.queries)
    check_cost(form, own)
    if "target" not in own:
        check_data(form)
    tables = {side: load_table(checked) for side, checked in own.items()}
    sources = _sources(form, file, own, tables)
    home = _home(form, file, sources[0])
    cut = {"model": load_model(form.model or ORIGINAL)} if form.target == STUDENT else {}
    planned = targets(form, own, **cut)
    latents = _latent_spaces(form, home, [t.space for t in planned], sources[0])
    first = planned[0].space
    carried = {"target": SpaceConfig.of(first), "seed": form.seed, "mapping": form.mapping}
    both = {"here": latents[home.full_name], "there": latents[first.full_name]}
    mapped = map_spaces(MapConfig(**carried), source=sources[0], **both)
    answers = {"table": tables["target"]} if "target" in own else {}  # of a built-in target the oracle has its own
    done = gather(
        {
            (target.label, number): search.submit(config, **given, **answers, **(cut if target is planned[0] else {}))
            for target in planned
            for number, (config, given) in enumerate(runs(form, target, sources, _of(latents, home, target.space)))
        }
    )
    searches = {t.label: [artifact for (label, _), artifact in done.items() if label == t.label] for t in planned}
    packing = PackageSourcesConfig(**carried)
    packed = package_sources(packing, source=sources[0], latents=latents, mapped=mapped, searches=list(done.values()))
    config = ReportConfig(
        title=_title(form, own, home),
        facts=_facts(form, file, own, sources),
        headline=form.searches[0],
        without=WITHOUT,
        cost=form.cost,
    )
    return report_search(config, searches=searches, mapped=mapped, packed=packed, **answers)


def _home(form: SearchForm, file: SourceFile | None, source: Artifact) -> Space:
    """The space in which the first source was learned."""
    if form.source == LATEST:
        return read_source(source).home
    return file.home if file else get_space(form.source_space or HOME)


def _latent_spaces(form: SearchForm, home: Space, spaces: list[Space], source: Artifact) -> dict[str, Artifact]:
    """Full name of a space -> its latent space: the source's, the first target's, and all in which a search works."""
    if not any(needs_latents(name) for name in form.searches):
        spaces = spaces[:1]  # for the map and its picture
    sizes = EncoderConfig(
        steps=form.encoder_steps, rank_steps=form.encoder_steps // 5, every=50, width=32, feedforward=64
    )
    shape = {"cells": form.encoder_cells, "shown": min(1000, form.encoder_cells), "encoder": sizes, "seed": form.seed}
    places = {space.full_name: SpaceConfig.of(space) for space in (home, *spaces)}
    if form.mapping == "shared":
        return dict.fromkeys(places, encode(EncodeConfig(spaces=tuple(places.values()), **shape), source=[source]))
    brought = [source] if source.name == LOADED else []  # a file may carry latent spaces of targets, too
    return gather(
        {
            name: encode.submit(
                EncodeConfig(spaces=(place,), **shape), source=[source] if name == home.full_name else brought
            )
            for name, place in places.items()
        }
    )


def _of(latents: dict[str, Artifact], *spaces: Space) -> list[Artifact]:
    """The latent spaces of these search spaces, as far as there are some, each once."""
    found = [latents[space.full_name] for space in dict.fromkeys(spaces) if space.full_name in latents]
    return list({a.sha256: a for a in found}.values())


def _title(form: SearchForm, own: dict[Side, Checked], home: Space) -> str:
    there = own["target"].table.file if "target" in own else f"{form.target} and to graph networks"
    return f"Architecture search: {home.name} to {there}"


def _facts(
    form: SearchForm, file: SourceFile | None, own: dict[Side, Checked], sources: list[Artifact]
) -> dict[str, str]:
    """What a reader of the report must know at once."""
    told = f"nb201 {form.source}, {form.labels} labels"
    if form.source == LATEST:
        told = "earlier searches: " + ", ".join(f"{a.name} of run {a.run[:8]}" for a in sources)
    if file:
        told = str(file)
    if "source" in own:
        told = f"{own['source']}, {min(form.labels, own['source'].rows):,} labels"
    target = {"target": f"{own['target']}; closed pool: no other cell can be asked"} if "target" in own else {}
    return {"source": told, **target, "map": form.mapping, "size": form.size, "seed": str(form.seed)}


def _sources(
    form: SearchForm, file: SourceFile | None, own: dict[Side, Checked], tables: dict[Side, Artifact]
) -> list[Artifact]:
    """What teaches; the first source is at home in the space of the table."""
    shared = {"labels": form.labels, "seed": form.seed}
    if file:
        return [load_source(file)]
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
    return [latest("search", ("learn-source", LOADED)), *learned]
