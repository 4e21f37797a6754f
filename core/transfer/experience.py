"""What happened once: the experience that a recommender learns from, as a row of the history."""

from dataclasses import dataclass
from typing import Any

from core.evaluate.rows import Row
from core.transfer.situation import Situation


@dataclass(frozen=True)
class Experience:
    """One strategy, once, in one situation.

    Args:
        situation: what was measured before.
        score: at most 1 and larger where better.
        seconds: of the fit.
        group: what must not be on both sides of an evaluation (the target).
        cell: what strategies are compared in (source, target, size, sample).
        kind: of the target; one kind's gains say nothing of another's.
        modality: of source and target; nor do one modality's of another's.
        passes: training examples passed, epochs counted; 0 where nothing was trained, None where not recorded.
    """

    situation: Situation
    strategy: str
    score: float
    seconds: float
    group: str
    cell: str
    kind: str = "classification"
    modality: str = "text"
    passes: float | None = None

    def row(self, **more: Any) -> Row:
        """As a row of the history."""
        settings = {"situation": dict(self.situation), "group": self.group, "cell": self.cell, "seconds": self.seconds}
        if self.kind != "classification":
            settings["kind"] = self.kind
        if self.modality != _modality_of_old(self.situation, self.kind):
            settings["modality"] = self.modality
        if self.passes is not None:
            settings["passes"] = self.passes
        return Row(method=self.strategy, metric="experience", value=self.score, settings=settings, **more)

    @classmethod
    def of(cls, row: Row) -> "Experience":
        s = row.settings
        kind = s.get("kind", "classification")
        modality = s.get("modality") or _modality_of_old(s["situation"], kind)
        facts = (s["seconds"], s["group"], s["cell"], kind, modality, s.get("passes"))
        return cls(s["situation"], row.method, row.value, *facts)


def _modality_of_old(situation: Situation, kind: str) -> str:
    """Of a record without it: answers in words are a language model's; of the others only texts have words."""
    if kind == "generation":
        return "language"
    return "image" if situation.get("mean_words", 0.0) is None else "text"
