"""Ours: guided search in which sources and sizes compete as experts, each trusted by what the first answers say."""

from core.nas.arena import Arena
from core.nas.experts import source_expert
from core.nas.predictors.gaussian import Hypothesis
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.searchers.guided import GuidedSearch, size_experts, size_hypotheses

NONE, SLOPE = 0.2, 0.75
PRIOR_SHARES = (0.1, 0.5, 0.4)  # of the source alone, with parameters, and sizes alone: size is seldom wrong


@SEARCHERS.register("transfer", "Sources as experts under a trust gate", uses="source")
def transfer(arena: Arena, seed: int, knowledge: Knowledge, initial: int = 10) -> GuidedSearch:
    """Hypotheses: nobody is right (.2); each source; with the prior also each size, and each source with parameters.

    Without sources this is the predictor search on generic features, its no-source twin.
    """
    experts = [source_expert(s, arena) for s in knowledge.sources]
    names = [e.name for e in experts]
    if len(set(names)) != len(names):
        raise ValueError(f"sources must have different names, got {names}")
    rest = 1 - NONE
    hypotheses = [Hypothesis(NONE)]
    if names and knowledge.prior:
        alone, together, sizes = (rest * share for share in PRIOR_SHARES)
        hypotheses += [Hypothesis(alone / len(names), {n: SLOPE}) for n in names]
        hypotheses += [Hypothesis(together / len(names), {n: 0.4, "params": 0.5}) for n in names]
        hypotheses += size_hypotheses(knowledge, sizes)
    elif names:
        hypotheses += [Hypothesis(rest / len(names), {n: SLOPE}) for n in names]
    else:
        hypotheses += size_hypotheses(knowledge, rest)
    experts += size_experts(arena, knowledge)
    noise = {"noisy": knowledge.noisy, "runs": knowledge.runs}
    return GuidedSearch(arena, seed, experts, hypotheses, initial=initial, unaided=names, **noise)
