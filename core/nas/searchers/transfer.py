"""Ours: guided search in which sources and sizes compete as experts, each trusted by what the first answers say."""

from core.nas.arena import Arena
from core.nas.experts import source_expert
from core.nas.predictors.gaussian import Hypothesis
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.searchers.guided import GuidedSearch, size_experts, size_hypotheses

NONE, SLOPE = 0.2, 0.75


@SEARCHERS.register("transfer", "Sources as experts under a trust gate", uses="source")
def transfer(arena: Arena, seed: int, knowledge: Knowledge, initial: int = 10) -> GuidedSearch:
    """Hypotheses: nobody is right (.2); each source; with the prior also each size, and each source with parameters.

    Without sources this is the predictor search on generic features, its no-source twin.
    """
    experts = [source_expert(s, arena) for s in knowledge.sources]
    names = [e.name for e in experts]
    if len(set(names)) != len(names):
        raise ValueError(f"sources must have different names, got {names}")
    hypotheses = [Hypothesis(NONE)]
    if names:
        share = (1 - NONE) / len(names) / (2 if knowledge.prior else 1)
        hypotheses += [Hypothesis(share, {n: SLOPE}) for n in names]
        if knowledge.prior:
            hypotheses += [Hypothesis(share / 2, {n: 0.5, "params": 0.35}) for n in names]
    hypotheses += size_hypotheses(knowledge, (1 - NONE) / (4 if names else 1))
    experts += size_experts(arena, knowledge)
    return GuidedSearch(arena, seed, experts, hypotheses, initial=initial, noisy=knowledge.noisy, unaided=names)
