"""Evolve a merge: multi-form transfer of merge recipes, beside the static operators and the search without transfer."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from core.data.tasks import load_task
from core.merge.baselines import SEARCHES
from core.merge.basis import BASES
from core.merge.choice_search import choice_start_cost
from core.merge.choices import CHOICES, check_choices
from core.merge.emfto import EmftoConfig
from core.merge.front import preference_weights
from core.merge.harness import HARNESS
from core.merge.problem import ProblemConfig
from core.merge.recipe_space import SpaceConfig, granularity_filters
from core.merge.solver import SolverConfig, scales_of, start_cost
from core.merge.static import STATIC
from core.merge.task_vectors import LAYER, read_tensors
from core.transfer.problem import Problem
from flows.families import family_of
from flows.merge import MergeForm, check_methods, merge_statically, quoted, taken_from
from flows.runtime import transfer_flow
from tasks.assemble import own_fitness
from tasks.build_subproblems import EvolveConfig, build_subproblems
from tasks.choose_recipe import ChooseConfig, choose_recipe
from tasks.earlier import LATEST, latest, made_from
from tasks.earlier_experts import compare
from tasks.evolve_recipes import evolve_recipes
from tasks.execute_recipe import ExecuteConfig, execute_recipe
from tasks.fan_out import gather
from tasks.language_base import is_language
from tasks.load_model import given_path
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
            "precision": "float32",
        },
        "default": {
            "max_length": 64,
            "epochs": 2,
            "most_tasks": 4,
            "methods": ("task_arithmetic", "tsv_m"),
            "basis": "tsv_m",
            "budget": 5000,
            "precision": "auto",
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
            "precision": "auto",
        },
    }
    # of a causal language model, which reads about ten short texts a second and core (SmolLM2-135M)
    language_sizes: ClassVar = {
        "smoke": sizes["smoke"],
        "default": {
            "examples": 400,
            "max_length": 30,
            "epochs": 2,
            "validation_examples": 40,
            "test_examples": 100,
            "most_tasks": 3,
            "methods": ("task_arithmetic", "tsv_m"),
            "basis": "tsv_m",
            "budget": 2500,
            "precision": "auto",
        },
        "full": {
            "examples": 3000,
            "max_length": 40,
            "epochs": 2,
            "validation_examples": 240,
            "test_examples": 100_000,
            "most_tasks": 99,
            "methods": tuple(STATIC),
            "basis": "tsv_m",
            "budget": 50_000,
            "precision": "auto",
        },
    }

    base: str = Field(
        "all-minilm-l6-v2",
        description="what all experts start from, asset, folder or hub name: an encoder (experts with heads) or a "
        "causal language model (experts are LoRA adapters), told by its configuration",
    )
    suite: str = Field(
        "auto",
        description="auto (eight with local data, else archive; language for a language model), eight, archive, "
        "language, or a YAML file",
    )
    experts: dict[str, str] = Field(
        default_factory=dict,
        description="models fine-tuned elsewhere from the base: {task: folder or hub name}; of a language model its "
        "LoRA adapters; other tasks are trained, and none but these where no task is named",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        le=512,
        description="longest text in tokens, for a language model in words (empty: by size)",
    )
    align: bool = Field(
        True,
        description="fit the heads to the merged encoder, on the experts' answers to unlabelled validation texts (a "
        "language model has none)",
    )
    methods: tuple[str, ...] | None = Field(None, description="static operators to compare (empty: by size)")
    budget: int | None = Field(None, ge=1, description="validation task-examples a search may spend (empty: by size)")
    basis: Literal[*BASES.names()] | None = Field(
        None, description="what coefficients weigh: raw task vectors or components made of them (empty: by size)"
    )
    granularity: str = Field("blocks:3", description="global, blocks:K, kinds, or layers")
    form: Literal["signed", "simplex"] = Field(
        "signed",
        description="signed: coefficients within bounds; simplex: shares of `total` (needs forms_share=0: a form holds "
        "the other experts' coefficients, and shares move together)",
    )
    total: float | None = Field(
        None,
        gt=0,
        description="simplex: what the coefficients of a group of layers add up to (empty: 1 for raw task vectors, an "
        "average; one an expert for components)",
    )
    choices: tuple[str, ...] = Field(
        CHOICES,
        description="components that the search 'choices' picks from for each expert and group of layers: a basis or "
        "ties, optionally @density (the share of largest magnitudes kept)",
    )
    batch: int = Field(16, ge=3, description="validation examples a task in a mini-batch, which is raced in thirds")
    forms_share: float = Field(
        0.08, ge=0, lt=1, description="part of the budget for forms (the ablation favours 0; they show the relations)"
    )
    source: Literal["none", "latest"] = Field(
        "none",
        description="latest: start from the relation graph of the latest finished run with this base, basis and "
        "granularity",
    )
    fitness: str = Field(
        "",
        description="a function of yours that the searches maximise instead of the tasks' scores, module:function or "
        "file.py:function: score(model, tokenizer) -> one score in [0, 1] for each of its examples; or tasks of "
        "lm-evaluation-harness, lm-eval:arc_easy,piqa?limit=50&num_fewshot=2",
    )
    front: int = Field(
        0, ge=0, description="preferences tried for a Pareto front over tasks, within the budget of emfto (0: no front)"
    )
    preference: dict[str, float] = Field(
        {},
        description="weights of tasks, others weigh 1: the front's best recipe for them becomes the model 'preferred'; "
        "another preference in a later run costs no search",
    )
    precision: Literal["auto", "float32", "bfloat16"] | None = Field(
        None,
        description="of mini-batches: auto takes bfloat16 where the machine computes in it; start and finalists "
        "are float32 in any case (empty: by size)",
    )
    medians: int = Field(
        1, ge=1, description="a score is the median of the means over so many parts of a mini-batch; 1: the mean"
    )
    searches: tuple[str, ...] = Field(
        ("emfto", "cold_cma"),
        description=f"searches that spend the same budget each, beside emfto: {', '.join(SEARCHES.names())}",
    )

    def resolved(self) -> Self:
        """With a language model as base, empty fields are filled from its own sizes."""
        form = self
        if is_language(self.base):
            preset = self.language_sizes[self.size] | {"suite": "language"}
            empty = [k for k in preset if getattr(self, k) in (None, "auto")]
            form = self.model_copy(update={k: preset[k] for k in empty} | {"align": False})
        return super(EvolveMergeForm, form).resolved()

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, granularity: str) -> str:
        granularity_filters(granularity, layers=10**4)  # of how many layers the base is, it says itself
        return granularity

    @field_validator("searches")
    @classmethod
    def _known_searches(cls, searches: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(SEARCHES.entry(name).name for name in searches)

    @field_validator("choices")
    @classmethod
    def _known_choices(cls, choices: tuple[str, ...]) -> tuple[str, ...]:
        return check_choices(choices)

    @model_validator(mode="after")
    def _shares_have_no_forms(self) -> "EvolveMergeForm":
        if self.form == "simplex" and self.forms_share:
            raise ValueError(
                "form=simplex: a sub-problem holds the other experts' coefficients, and shares move together; give "
                "forms_share=0"
            )
        if self.form == "simplex" and "choices" in self.searches:
            raise ValueError("search choices has signed coefficients; leave it out, or give form=signed")
        return self

    @model_validator(mode="after")
    def _front_is_over_tasks(self) -> "EvolveMergeForm":
        if self.fitness and self.front:
            raise ValueError("front is over tasks, fitness is one function of yours; give one of them")
        return self

    @model_validator(mode="after")
    def _preference_needs_a_front(self) -> "EvolveMergeForm":
        if self.preference and not self.front:
            raise ValueError("preference chooses from a Pareto front; give front=N, the number of its points")
        return self


def problem(form: EvolveMergeForm) -> Problem:
    """What this search transfers."""
    family = family_of(form.base)
    names = family.task_names(form)
    experts = f"{len(names)} experts of {form.base}{taken_from(form)}"
    return Problem(
        source=f"sub-problems of {experts}: pairs and larger sets, context kept",
        target=f"one {form.base} {family.target.format(len(names))}",
        knowledge="merge coefficients, their covariance, model-task relations",
        domain=", ".join(names),
        objective=f"{form.fitness or 'mean normalised validation score'} selects the recipe, test accuracy is reported",
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
    finalists, left = config.search.solver.finalists, config.searched(validation)
    starts = {"emfto": start_cost(scales_of(form.basis), price, validation)}
    if "choices" in form.searches:
        starts["choices"] = choice_start_cost(form.choices, price, validation)
    search = max(starts, key=starts.get)
    need = starts[search] + price + finalists * validation
    if need > left:
        after = f" after {form.front} points of the front" if form.front else ""
        raise ValueError(
            f"budget={form.budget} leaves {left} task-examples{after}, search {search} takes at least {need}: its "
            f"start {starts[search]} (scales on {price} examples each, the best on all {validation}), a candidate "
            f"{price}, {finalists} finalists {validation} each; raise budget, or lower validation_examples or batch"
        )


def space_of(form: EvolveMergeForm) -> SpaceConfig:
    """The recipe space; shares add up to ``total``, else to 1 for raw vectors (an average), else one an expert."""
    space = SpaceConfig(basis=form.basis, granularity=form.granularity, form=form.form)
    if form.form == "signed":
        return space
    experts = 1 if form.basis == "raw" else len(family_of(form.base).task_names(form))
    return space.model_copy(update={"total": form.total or float(experts)})


def evolve_config(form: EvolveMergeForm, method: str, replaced: Sequence[str] = ()) -> EvolveConfig:
    """The stage configuration of one search; ``replaced``: experts of its source that are others now."""
    return EvolveConfig(
        problem=ProblemConfig(
            space=space_of(form),
            batch=form.batch,
            validation_examples=form.validation_examples,
            max_length=form.max_length,
            precision=form.precision,
            align=form.align,
            seed=form.seed,
        ),
        # all examples of a function are scored at every call: a race in pieces would run it once a piece
        search=EmftoConfig(
            forms_share=form.forms_share,
            solver=SolverConfig(finalists=2, **({"racing_parts": 1} if form.fitness else {})),
        ),
        fitness=own_fitness(form.fitness),
        method=SEARCHES.entry(method).name,
        budget=form.budget,
        front=form.front if method == "emfto" else 0,
        seed=form.seed,
        replaced=tuple(replaced),
        choices=form.choices if method == "choices" else (),
        medians=form.medians,
    )


def earlier_graph(form: EvolveMergeForm, base: Artifact) -> Artifact:
    """What the latest run learned of the same base in the same recipe space.

    Raises:
        ValueError: no such run, or its base had other weights under the same name.
    """
    same = {name: str(getattr(form, name)) for name in ("base", "basis", "granularity", "form")}
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
    family = family_of(form.base)
    names = family.task_names(form)
    preference_weights(tuple(load_task(n).name for n in names), form.preference)  # a wrong name is refused now
    check_methods(form, names)
    if form.fitness.startswith(HARNESS) and not is_language(form.base):
        raise ValueError(
            f"fitness={form.fitness}: tasks of lm-eval are for causal language models, {form.base} is none"
        )
    base = family.load_base(form)
    check_depth(form, base)
    if not is_planning() and not form.fitness:  # a plan may not have the data, a function says its size when called
        check_budget(form, names)
    experts = family.make_experts(form, names, base)
    earlier, mix = {}, None
    if form.source == LATEST:
        earlier = {"source": earlier_graph(form, base)}
        if not any(e.planned for e in experts.values()):
            mix = compare(earlier["source"], experts)
    configs = {m: evolve_config(form, m) for m in dict.fromkeys(("emfto", *form.searches))}
    configs["emfto"] = evolve_config(form, "emfto", mix.replaced if mix else ())
    forms = build_subproblems(configs["emfto"], base=base, experts=experts, **earlier)
    tuned, merged = merge_statically(form, base, experts)  # after what refuses experts that nothing can be relative to
    known = {"emfto": {"subproblems": forms, **earlier}}
    evolved = gather(
        {
            m: evolve_recipes.submit(config, base=base, experts=experts, **known.get(m, {}))
            for m, config in configs.items()
        }
    )
    recipes = dict(evolved)
    if form.preference:
        recipes["preferred"] = choose_recipe(ChooseConfig(preference=form.preference), evolved=evolved["emfto"])
    merged |= gather({m: execute_recipe.submit(ExecuteConfig(), evolved=r) for m, r in recipes.items()})
    searches = {m: evolved.get(m, evolved["emfto"]) for m in recipes}
    spent = {**dict.fromkeys(merged, tuned), **searches}
    best = "preferred" if form.preference else "emfto"
    evaluated, delivered = family.deliver(form, base, experts, merged, spent, best)
    without = next((m for m in evolved if m != "emfto"), "emfto")
    facts = {"base": form.base, "tasks": ", ".join(names), "budget": f"{form.budget} task-examples", "size": form.size}
    facts |= {f"expert of {task}": model for task, model in form.experts.items()} | delivered
    if earlier:
        spent = ", ".join(f"{v:g} {k}" for k, v in earlier["source"].facts().get("budget", {}).items())
        facts["source"] = (
            f"relation graph of run {earlier['source'].run[:8]} (which spent {spent or 'no counted budget'})"
        )
        facts["experts since that run"] = str(mix or "")
    config = ReportConfig(
        title=f"Evolved merge of {len(names)} experts",
        facts=facts,
        without=without,
        budget=form.budget,
        about=family.about,
        warm=bool(earlier),
    )
    stages = {"evaluated": evaluated, "evolved": evolved, "experts": experts, "subproblems": forms}
    return report_evolution(config, **stages, **quoted(form, names, config.transfer, evaluated))
