"""Evolve a merge: multi-form transfer of merge recipes, beside the static operators and the search without transfer."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from core.data.tasks import load_task
from core.merge.baselines import SEARCHES
from core.merge.basis import BASES
from core.merge.emfto import EmftoConfig
from core.merge.front import preference_weights
from core.merge.problem import ProblemConfig
from core.merge.recipe_space import SpaceConfig, granularity_filters
from core.merge.solver import SolverConfig, scales_of, start_cost
from core.merge.static import STATIC
from core.merge.task_vectors import LAYER, read_tensors
from core.transfer.problem import Problem
from flows.merge import (
    MergeForm,
    align_config,
    check_methods,
    load_base,
    make_experts,
    merge_statically,
    quoted,
    taken_from,
    task_names,
)
from flows.runtime import transfer_flow
from tasks.align_heads import SUFFIX, align_heads
from tasks.build_subproblems import EvolveConfig, build_subproblems
from tasks.choose_recipe import ChooseConfig, choose_recipe
from tasks.earlier import LATEST, latest, made_from
from tasks.evaluate_merges import EvaluateConfig, evaluate_merges, hits_of
from tasks.evolve_recipes import evolve_recipes
from tasks.execute_recipe import ExecuteConfig, execute_recipe
from tasks.fan_out import gather
from tasks.load_model import given_path, load_model
from tasks.package_merge import PackageConfig, package_merge
from tasks.register_model import register_model
from tasks.report_evolution import ReportConfig, report_evolution
from tasks.stage import Artifact, is_planning


class EvolveMergeForm(MergeForm):
    """Which experts are merged, in which space, with which budget."""

    sizes: ClassVar = {
        "smoke": {
            "examples": 16,
            "max_length": 8,
            "epochs": 1,
            "validation_examples": 20,
            "test_examples": 20,
            "most_tasks": 2,
            "methods": ("average",),
            "basis": "raw",
            "budget": 400,
        },
        "default": {
            "max_length": 64,
            "epochs": 2,
            "most_tasks": 4,
            "methods": ("task_arithmetic", "tsv_m"),
            "basis": "tsv_m",
            "budget": 5000,
        },
        "full": {
            "examples": 2000,
            "max_length": 128,
            "epochs": 4,
            "validation_examples": 800,
            "test_examples": 100_000,
            "most_tasks": 99,
            "methods": tuple(STATIC),
            "basis": "tsv_m",
            "budget": 100_000,
        },
    }

    methods: tuple[str, ...] | None = Field(None, description="static operators to compare (empty: by size)")
    budget: int | None = Field(None, ge=1, description="validation task-examples a search may spend (empty: by size)")
    basis: Literal[*BASES.names()] | None = Field(
        None, description="what coefficients weigh: raw task vectors or components made of them (empty: by size)"
    )
    granularity: str = Field("blocks:3", description="global, blocks:K, kinds, or layers")
    batch: int = Field(16, ge=3, description="validation examples a task in a mini-batch, which is raced in thirds")
    forms_share: float = Field(
        0.08, ge=0, lt=1, description="part of the budget for forms (the ablation favours 0; they show the relations)"
    )
    source: Literal["none", "latest"] = Field(
        "none",
        description="latest: start from the relation graph of the latest finished run with this base, basis and "
        "granularity",
    )
    front: int = Field(
        0, ge=0, description="preferences tried for a Pareto front over tasks, within the budget of emfto (0: no front)"
    )
    preference: dict[str, float] = Field(
        {},
        description="weights of tasks, others weigh 1: the front's best recipe for them becomes the model 'preferred'; "
        "another preference in a later run costs no search",
    )
    searches: tuple[str, ...] = Field(("emfto", "cold_cma"), description="searches that spend the same budget each")

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, granularity: str) -> str:
        granularity_filters(granularity, layers=10**4)  # of how many layers the base is, it says itself
        return granularity

    @model_validator(mode="after")
    def _preference_needs_a_front(self) -> "EvolveMergeForm":
        if self.preference and not self.front:
            raise ValueError("preference chooses from a Pareto front; give front=N, the number of its points")
        return self


def problem(form: EvolveMergeForm) -> Problem:
    """What this search transfers."""
    names = task_names(form)
    experts = f"{len(names)} experts of {form.base}{taken_from(form)}"
    return Problem(
        source=f"sub-problems of {experts}: pairs and larger sets, context kept",
        target=f"one {form.base} encoder with {len(names)} heads",
        knowledge="merge coefficients, their covariance, model-task relations",
        domain=", ".join(names),
        objective="mean normalised validation score selects the recipe, test accuracy is reported",
        budget=f"{form.budget} task_examples, forms included",
    )


def check_depth(form: EvolveMergeForm, base: Artifact) -> None:
    """Refuse more blocks than the base has layers, before experts are trained. (A plan may not have the base yet.)

    Raises:
        ValueError: naming both, and what fits.
    """
    folder = given_path(form.base) if base.planned else base.folder
    if folder is not None and any(folder.glob("*.safetensors")):
        found = [LAYER.search(name) for name in read_tensors(folder)]
        layers = 1 + max((int(m[1]) for m in found if m), default=0)
        try:
            granularity_filters(form.granularity, layers)
        except ValueError as error:
            raise ValueError(f"{error}; set granularity=blocks:{layers} at most, or layers") from None


def check_budget(form: EvolveMergeForm, names: Sequence[str]) -> None:
    """Refuse a budget that does not pay for a search's start, one candidate and its finalists, before experts train.

    Raises:
        ValueError: naming what they take.
    """
    sizes = [min(form.validation_examples, len(load_task(name).splits().validation)) for name in names]
    price, validation = len(names) * min(form.batch, *sizes), sum(sizes)
    config = evolve_config(form, "emfto")
    finalists = config.search.solver.finalists
    start = start_cost(scales_of(form.basis), price, validation)
    need, left = start + price + finalists * validation, config.searched(validation)
    if need > left:
        after = f" after {form.front} points of the front" if form.front else ""
        raise ValueError(
            f"budget={form.budget} leaves {left} task-examples{after}, a search takes at least {need}: its start "
            f"{start} ({len(scales_of(form.basis))} scales on {price} examples each, the best on all {validation}), "
            f"a candidate {price}, {finalists} finalists {validation} each; raise budget, or lower "
            "validation_examples or batch"
        )


def evolve_config(form: EvolveMergeForm, method: str) -> EvolveConfig:
    """The stage configuration of one search."""
    return EvolveConfig(
        problem=ProblemConfig(
            space=SpaceConfig(basis=form.basis, granularity=form.granularity),
            batch=form.batch,
            validation_examples=form.validation_examples,
            max_length=form.max_length,
            align=form.align,
            seed=form.seed,
        ),
        search=EmftoConfig(forms_share=form.forms_share, solver=SolverConfig(finalists=2)),
        method=SEARCHES.entry(method).name,
        budget=form.budget,
        front=form.front if method == "emfto" else 0,
        seed=form.seed,
    )


def earlier_graph(form: EvolveMergeForm, base: Artifact) -> Artifact:
    """What the latest run learned of the same base in the same recipe space.

    Raises:
        ValueError: no such run, or its base had other weights under the same name.
    """
    same = {name: str(getattr(form, name)) for name in ("base", "basis", "granularity")}
    found = latest("evolve-merge", "evolve-recipes", same, method="emfto")
    if not base.planned and base.sha256 not in made_from(found):
        raise ValueError(
            f"source latest: run {found.run[:8]} merged experts of another {form.base}, its weights were others; run "
            "evolve-merge once without it"
        )
    return found


@transfer_flow(
    "evolve-merge",
    level="system",
    parameters=EvolveMergeForm,
    problem=problem,
    title="Search a merge of experts by multi-form transfer, within a counted budget",
    headline=("accuracy", "normalised"),
)
def evolve_merge(form: EvolveMergeForm) -> Artifact:
    names = task_names(form)
    preference_weights(tuple(load_task(n).name for n in names), form.preference)  # a wrong name is refused now
    check_methods(form, names)
    base = load_base(form)
    check_depth(form, base)
    if not is_planning():  # which may not have the tasks' data yet
        check_budget(form, names)
    experts = make_experts(form, names, base)
    earlier = {}
    if form.source == LATEST:
        earlier = {"source": earlier_graph(form, base)}
    forms = build_subproblems(evolve_config(form, "emfto"), base=base, experts=experts, **earlier)
    tuned, merged = merge_statically(form, base, experts)  # after what refuses experts that nothing can be relative to
    known = {"emfto": {"subproblems": forms, **earlier}}
    evolved = gather(
        {
            m: evolve_recipes.submit(evolve_config(form, m), base=base, experts=experts, **known.get(m, {}))
            for m in dict.fromkeys(("emfto", *form.searches))
        }
    )
    recipes = dict(evolved)
    if form.preference:
        recipes["preferred"] = choose_recipe(ChooseConfig(preference=form.preference), evolved=evolved["emfto"])
    merged |= gather({m: execute_recipe.submit(ExecuteConfig(), evolved=r) for m, r in recipes.items()})
    searches = {m: evolved.get(m, evolved["emfto"]) for m in recipes}
    test = EvaluateConfig(test_examples=form.test_examples, max_length=form.max_length, seed=form.seed)
    aligned = {}
    if form.align:
        aligned["aligned"] = align_heads(align_config(form), experts=experts, merged=merged)
    spent = {**dict.fromkeys(merged, tuned), **searches}
    evaluated = evaluate_merges(test, base=base, experts=experts, merged=merged, spent=spent, **aligned)
    best = "preferred" if form.preference else "emfto"
    packing = PackageConfig(max_length=form.max_length, method=best)
    also = {"also": [load_model(m) for m in form.experts.values()]} if form.experts else {}
    package = package_merge(packing, base=base, experts=experts, merged=merged, **also, **aligned)
    if not is_planning():
        served = best + (SUFFIX if form.align else "")
        register_model("evolved-encoder", package, evaluated, served, hits_of(evaluated, served))
    without = next((m for m in evolved if m != "emfto"), "emfto")
    facts = {"base": form.base, "tasks": ", ".join(names), "budget": f"{form.budget} task-examples", "size": form.size}
    facts |= {f"expert of {task}": model for task, model in form.experts.items()}
    if earlier:
        spent = ", ".join(f"{v:g} {k}" for k, v in earlier["source"].facts().get("budget", {}).items())
        facts["source"] = (
            f"relation graph of run {earlier['source'].run[:8]} (which spent {spent or 'no counted budget'})"
        )
    config = ReportConfig(
        title=f"Evolved merge of {len(names)} experts", facts=facts, without=without, budget=form.budget
    )
    stages = {"evaluated": evaluated, "evolved": evolved, "experts": experts, "subproblems": forms}
    return report_evolution(config, **stages, **quoted(form, names, config.transfer, evaluated))
