"""Build and solve the sub-problems: tuned static start, forms from pairs up, and the relation graph they teach."""

from collections.abc import Mapping

from pydantic import Field

from core.config import Config
from core.merge.emfto import EmftoConfig, solve_forms
from core.merge.problem import MergeProblem, ProblemConfig, merge_problem
from core.merge.relation import RelationGraph
from core.transfer.budget import Budget
from tasks.costed import costed
from tasks.merge_static import experts_of
from tasks.stage import Artifact, Output, stage

GRAPH, PICTURE, FORMS = "graph.ckpt", "graph.png", "forms.ckpt"
MODULES = ["core.merge.emfto", "core.merge.problem"]


class EvolveConfig(Config):
    """A merge search."""

    problem: ProblemConfig = Field(ProblemConfig(), description="recipe space and fitness")
    search: EmftoConfig = Field(EmftoConfig(), description="settings of the multi-form search")
    method: str = Field("emfto", description="which search spends the budget")
    budget: int = Field(100_000, ge=1, description="task-examples, everything included")
    front: int = Field(0, ge=0, description="preferences tried for a Pareto front over tasks, within the budget")
    seed: int = Field(0, description="of the search")

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


def judged_problem(base: Artifact, experts: Mapping[str, Artifact], config: ProblemConfig) -> MergeProblem:
    """The search problem of the experts.

    Raises:
        ValueError: an expert that got no validation example right. Scores are relative to it, so that a single right
            answer on its task would count for more than all other tasks together.
    """
    problem = merge_problem(base.folder, experts_of(experts), config)
    for name, task in problem.fitness.objectives.items():
        if task.reference < 1 / task.size:  # less than one answer
            raise ValueError(
                f"the expert of {name!r} got none of its {task.size} validation examples right, and a search scores "
                "every merge relative to it; give it more examples or epochs, or leave the task out (flow merge "
                "reports such a task beside the others)"
            )
    return problem


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
    problem = judged_problem(base, experts, config.problem)
    budget = Budget("task_examples", config.searched(problem.fitness.validation_size))
    known = None if source is None else RelationGraph.load(source.folder / GRAPH)
    state = solve_forms(
        problem.fitness,
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
    out.metrics({"forms": len(gains), "merging_share": problem.fitness.clock.merging_share})
    out.budget(budget.counts)
