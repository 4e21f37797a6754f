"""The transfer problem (S, T, K, D, F, budget), stated by every run before it starts."""

from pydantic import Field

from core.config import Config


class Problem(Config):
    """What a run transfers. Each field is a short sentence or name; they become tags of the run."""

    source: str = Field(description="S: what knowledge is taken from (models, spaces, tables), with names")
    target: str = Field(description="T: what is built or improved")
    knowledge: str = Field(description="K: what is carried over (logits, representations, architectures, task vectors)")
    domain: str = Field(description="D: tasks, data sets or search space in which it happens")
    objective: str = Field(description="F: what decides, with its split")
    budget: str = Field(description="counted budget: limit and unit")

    def tags(self) -> dict[str, str]:
        """The tags ``S, T, K, D, F, budget`` of a run."""
        return {
            "S": self.source,
            "T": self.target,
            "K": self.knowledge,
            "D": self.domain,
            "F": self.objective,
            "budget": self.budget,
        }
