"""Structure searchers, one a file: ask-tell optimizers on an :class:`core.nas.arena.Arena`.

``SEARCHERS.get(name)(arena, seed, knowledge)`` builds one; it runs in the one loop of :mod:`core.evolve`. Fact ``uses``
says what a searcher takes from its :class:`Knowledge`: ``nothing``, ``sizes``, ``encoder`` or ``source``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.nas.spaces import Space
from core.registry import Registry

SEARCHERS: Registry[Any] = Registry("searcher", "core.nas.searchers")


@dataclass(frozen=True)
class Knowledge:
    """What a search may use besides queries.

    Args:
        sources: what other spaces taught.
        prior: whether parameters and FLOPs compete as experts.
        noisy: whether the oracle answers with single training runs (decides how the incumbent is chosen).
        latents: trained latent spaces by :attr:`~core.nas.spaces.Space.full_name` of their search space (its name
            where the settings are the default ones), for the searchers that work there.
        runs: how many training runs of a cell the oracle can answer with (:meth:`core.nas.oracles.Oracle.runs`).
    """

    sources: tuple[Any, ...] = ()
    prior: bool = False
    noisy: bool = True
    latents: Mapping[str, Any] = field(default_factory=dict)
    runs: Callable[[Any], int] = lambda cell: 1

    def latent(self, space: Space, searcher: str) -> Any:
        """The latent space of ``space``. Raises ValueError, for ``searcher``, where none is known."""
        if space.full_name not in self.latents:
            known = f"it has those of {', '.join(self.latents)}" if self.latents else "it has none"
            raise ValueError(
                f"searcher {searcher!r} needs the latent space of {space.full_name!r} in knowledge.latents; {known}"
            )
        return self.latents[space.full_name]


def get_searcher(name: str, arena: Any, seed: int = 0, knowledge: Knowledge | None = None, **settings: Any) -> Any:
    """The searcher ``name`` on ``arena``, ready for the search loop."""
    return SEARCHERS.get(name)(arena, seed, knowledge or Knowledge(), **settings)


def best_told(told: Sequence[Any]) -> Any | None:
    """The candidate of the highest answer, the first of equals; None before the first finite one."""
    finite = [t for t in told if t.score > float("-inf")]
    return max(finite, key=lambda t: t.score).candidate if finite else None
