"""Which experts of an earlier run are still there: by content, because a replaced expert keeps its task's name."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.merge.relation import RelationGraph
from tasks.build_subproblems import GRAPH
from tasks.earlier import made_from
from tasks.stage import Artifact


@dataclass(frozen=True)
class Mix:
    """The experts of a run beside those of an earlier one, by name."""

    kept: tuple[str, ...]
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]

    def __str__(self) -> str:
        parts = {"kept": self.kept, "added": self.added, "replaced": self.replaced, "removed": self.removed}
        return "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names)


def compare(earlier: Artifact, experts: Mapping[str, Artifact]) -> Mix:
    """The present experts against those that an earlier search read.

    Args:
        earlier: output of the stage evolve-recipes; the run behind it recorded the hashes of its inputs.
        experts: task -> expert.
    """
    before, read = RelationGraph.load(earlier.folder / GRAPH).experts, made_from(earlier)
    same = [name for name in experts if name in before and experts[name].sha256 in read]
    return Mix(
        kept=tuple(same),
        added=tuple(n for n in experts if n not in before),
        replaced=tuple(n for n in experts if n in before and n not in same),
        removed=tuple(n for n in before if n not in experts),
    )
