"""Build and solve the sub-problems: tuned static start, forms from pairs up, and the relation graph they teach."""

from collections.abc import Mapping

from pydantic import Field

from core.config import Config
from core.merge.emfto import EmftoConfig, solve_forms
from core.merge.exact_finalists import ExactFinalists
from core.merge.fitness import Fitness
from core.merge.problem import MergeProblem, ProblemConfig
from core.merge.relation import RelationGraph
from core.merge.replaced import without_replaced
from core.transfer.budget import Budget
from tasks.assemble import OwnFitness, exactly, problem_of
from tasks.costed import costed
from tasks.population import ProblemPlace, on_workers
from tasks.runner import Executor
from tasks.stage import Artifact, Output, stage

GRAPH, PICTURE, FORMS = "graph.ckpt", "graph.png", "forms.ckpt"
MODULES = [
    "core.merge.emfto",
    "core.merge.problem",
    "core.merge.language",
    "core.merge.replaced",
    "core.merge.own_fitness",
    "core.merge.exact_finalists",
]


class EvolveConfig(Config):
    """A merge search."""

    problem: ProblemConfig = Field(ProblemConfig(), description="recipe space and fitness")
    search: EmftoConfig = Field(EmftoConfig(), description="settings of the multi-form search")
    method: str = Field("emfto", description="which search spends the budget")
    budget: int = Field(100_000, ge=1, description="task-examples, everything included")
    front: int = Field(0, ge=0, description="preferences tried for a Pareto front over tasks, within the budget")
    seed: int = Field(0, description="of the search")
    choices: tuple[str, ...] = Field((), description="components that a recipe may choose from (search choices)")
    medians: int = Field(
        1, ge=1, description="a score is the median of the means over so many parts of a mini-batch; 1: the mean"
    )
    fitness: OwnFitness | None = Field(None, description="a user's function that is searched for instead of the tasks")
    replaced: tuple[str, ...] = Field(
        (), description="experts of the source whose weights are others now; what it knows of them is not used"
    )

    def searched(self, price: int) -> int:
        """What the search may spend: the budget without the points of the front, ``price`` task-examples each.

        Raises:
            ValueError: nothing is left.
        """
        kept = self.front * price
        if kept >= self.budget:
            raise ValueError(
                f"a front of {self.front} points takes {kept} task-examples ({price} each), the budget is "
                f"{self.budget}: raise the budget, or ask for fewer points"
            )
        return self.budget - kept


def graph_of(source: Artifact, config: EvolveConfig) -> RelationGraph:
    """What an earlier run learned, without what it learned of experts that were replaced since."""
    return without_replaced(RelationGraph.load(source.folder / GRAPH), config.replaced)


def scored(
    config: EvolveConfig, base: Artifact, experts: Mapping[str, Artifact], workers: Executor | None = None
) -> tuple[MergeProblem, Fitness]:
    """The problem of a search, and its fitness: generations by ``workers``, start and finalists in float32."""
    problem = problem_of(base, experts, config.problem, config.fitness, config.choices)
    fitness = problem.fitness
    fitness.blocks = config.medians
    if workers is not None:
        place = ProblemPlace(
            base=base, experts=dict(experts), config=config.problem, fitness=config.fitness, choices=config.choices
        )
        fitness = on_workers(fitness, place, workers)
    exact = exactly(problem, base, experts, config.problem, config.choices)
    return problem, fitness if exact is None else ExactFinalists(fitness, exact)


@stage("build-subproblems", modules=MODULES)
@costed
def build_subproblems(
    out: Output,
    config: EvolveConfig,
    base: Artifact,
    experts: Mapping[str, Artifact],
    source: Artifact | None = None,
) -> None:
    """Solve forms until their share of the budget is spent; write the relation graph and its picture."""
    problem, fitness = scored(config, base, experts)
    budget = Budget("task_examples", config.searched(fitness.validation_size))
    known = None if source is None else graph_of(source, config)
    state = solve_forms(
        fitness,
        problem.space,
        budget,
        config.search,
        problem.owners,
        seed=config.seed,
        source=known,
        checkpoint=out.folder,
    )
    state.graph.save(out.folder / GRAPH)
    state.graph.draw(out.folder / PICTURE)
    gains = [(i, s.gain) for i, s in enumerate(state.graph.solved)]
    out.curve("form/gain", gains)
    out.metrics({"forms": len(gains), "merging_share": fitness.clock.merging_share})
    out.budget(budget.counts)
