"""One architecture search against an oracle, every query counted; a killed search continues from its checkpoint."""

from typing import Any

from pydantic import Field
from threadpoolctl import threadpool_limits

from core.config import Config
from core.evaluate.rows import Row
from core.hashing import content_key
from core.models.load import kind_of
from core.nas.arena import Arena
from core.nas.latency import latency_of
from core.nas.search import incumbent, search_architectures
from core.nas.searchers import Knowledge, get_searcher
from core.nas.searchers.pareto import LATENCY
from core.state import Cache, write_json
from core.transfer.budget import Budget
from tasks.encode_architectures import read_latent
from tasks.learn_source import OracleConfig, read_source
from tasks.load_model import opened
from tasks.load_table import path_in
from tasks.stage import Artifact, Output, stage

TRIALS, TRUST = "trials.json", "trust.json"


class SearchConfig(Config):
    """Where, how and how long to search."""

    label: str = Field(description="how the report calls the run")
    oracle: OracleConfig
    closed: bool = Field(description="whether only the cells of the oracle's table can be asked")
    searcher: str = Field("transfer", description="registered searcher")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the searcher")
    prior: bool = Field(False, description="parameters and FLOPs compete as experts")
    queries: int = Field(12, ge=1, description="true target queries")
    population: int = Field(1500, ge=100, description="cells drawn of a space that is not enumerated")
    metric: str = Field("", description="reference that is the score (empty: the answer)")
    seed: int = 0


@stage(
    "search-architectures",
    modules=[
        "core.nas.search",
        "core.nas.searchers.transfer",
        "core.nas.searchers.pareto",
        "core.nas.searchers.bridge",
        "core.nas.searchers.generic",
        "core.nas.searchers.local_search",
        "core.nas.searchers.size_first",
        "core.nas.searchers.target_latent",
        "core.nas.latency",
    ],
)
def search(
    out: Output,
    config: SearchConfig,
    sources: list[Artifact],
    latents: list[Artifact],
    table: Artifact | None = None,
    model: Artifact | None = None,
) -> None:
    """Search, then write one row a query: the score of the cell that would be kept after it.

    ``table``: the user's own table that the oracle reads; ``model``: of which it cuts students.
    """
    # More threads sum in another order, and a search that is one rounding off asks other cells.
    with threadpool_limits(1, user_api="blas"):
        _search(out, config, sources, latents, {**path_in(table), **model_in(model)})


def model_in(artifact: Artifact | None) -> dict[str, Any]:
    """The settings of an oracle that cuts students of a loaded model; nothing for one that trains cells."""
    return {} if artifact is None else {"model": opened(artifact), "decoder": kind_of(opened(artifact)) == "causal"}


def _search(
    out: Output, config: SearchConfig, sources: list[Artifact], latents: list[Artifact], given: dict[str, Any]
) -> None:
    oracle = config.oracle.open(seed=config.seed, budget=Budget("queries", config.queries), **given)
    arena = Arena(oracle.space, oracle.pool() if config.closed else None, config.population, Cache())
    spaces = {space.full_name: latent for latent in map(read_latent, latents) for space in latent.codec.spaces}
    learned = tuple(read_source(a) for a in sources)
    knowledge = Knowledge(learned, config.prior, oracle.noise == "single run", spaces, oracle.runs)
    latency = latency_of(oracle) if config.settings.get("cost") == LATENCY else None
    own = config.settings | ({"latency": latency} if latency else {})
    searcher = get_searcher(config.searcher, arena, config.seed, knowledge, **own)
    trust: list[dict[str, float]] = []

    def after(generation: int, trials: Any) -> None:
        if hasattr(searcher, "trust"):
            trust.append({"queries": oracle.queries, **searcher.trust()})

    checkpoint = out.folder / "search"
    result = search_architectures(oracle, searcher, checkpoint=checkpoint, key=content_key(config), on_generation=after)
    checkpoint.unlink(missing_ok=True)
    rows, kept = [], {}
    for n in range(1, len(result.trials) + 1):
        cell = incumbent(searcher, result, n)
        told = {"answer": oracle.query(cell).value, **oracle.reference(cell)} if cell is not None else {}
        kept[n] = {"cell": arena.to_json(cell) if cell is not None else "", **told}
        settings = {"run": config.label, "target": f"{oracle.space.name} {oracle.dataset}", "queries": n}
        value = told.get(config.metric or "answer")
        rows.append(
            Row(
                method=config.searcher,
                metric="score",
                value=value,
                seed=config.seed,
                settings=settings,
                budget={"queries": n},
                oracle=oracle.describe(),
                inputs=dict(oracle.inputs),
            )
        )
    trials = [
        {"cell": arena.to_json(t.candidate), "score": t.score, **oracle.space.size_features(t.candidate)}
        for t in result.trials
    ]
    if latency:
        for trial, seconds in zip(trials, latency([t.candidate for t in result.trials]), strict=True):
            trial[LATENCY] = float(seconds)
    told = {"label": config.label, "searcher": config.searcher, "space": oracle.space.name}
    told["settings"] = oracle.space.settings
    write_json(out.folder / TRIALS, told | {"trials": trials, "kept": kept})
    write_json(out.folder / TRUST, trust)
    out.rows(rows)
    out.curve(f"kept/{config.label}", [(r.settings["queries"], r.value) for r in rows if r.value is not None])
    out.budget(oracle.budget.counts)
    out.metrics({"best": max(t.score for t in result.trials)})
