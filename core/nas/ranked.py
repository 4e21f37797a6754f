"""The paper's way of counting: a search asks a ranker, and only the ranker's calls are called evaluations.

Published tables of latent-space searches (BRIDGE, Hou et al. 2025) count calls of a predictor that was trained on
thousands of target labels; the labels themselves are not counted. This runs such a search, so that both counts can
stand side by side.
"""

from typing import Any

import numpy as np

from core.evolve.loop import search
from core.nas.encoder import LatentSpace
from core.nas.spaces import Genotype, Space
from core.transfer.budget import Budget


def ranked_search(space: Space, latent: LatentSpace, searcher: Any, calls: int) -> list[Genotype]:
    """The cells that ``searcher`` asks when the ranker answers, in falling order of the ranker's score.

    Args:
        latent: latent space of ``space`` with a ranker; the target labels it was trained on are true queries.
        calls: what the paper counts.
    """
    budget = Budget("evaluations", calls)

    def evaluate(cells: list[Genotype]) -> list[float]:
        return [float(score) for score in latent.rank(latent.encode(space, cells))]

    trials = search(searcher, evaluate, budget, description=f"ranked search {space.name}").trials
    order = np.argsort([-t.score for t in trials], kind="stable")
    return [trials[i].candidate for i in order]
