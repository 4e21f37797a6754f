"""The same seed gives the same bytes whatever the global random state is; searches also on one and two threads."""

import random

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from core.hashing import sha256_file
from core.merge.baselines import SEARCHES
from core.merge.emfto import EmftoConfig
from core.merge.experts import train_expert
from core.merge.landscape import artificial_problem
from core.merge.solver import SolverConfig
from core.state import Cache
from core.transfer.budget import Budget
from tests.tiny_experts import CONFIG, base_folder, tasks


def move_global_state(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_training_whatever_the_global_random_state(tmp_path):
    """On one thread count; torch adds in another order on another count, and then agrees closely, not to the bit."""
    base, found = base_folder(tmp_path / "base"), []
    for seed in (1, 2):
        move_global_state(seed)
        folder = train_expert(tasks()[0], base, CONFIG, Cache(tmp_path / f"cache{seed}"))
        found.append({p.name: sha256_file(p) for p in folder.glob("*.safetensors")})
    assert found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["emfto", "cold_cma"])
def test_searches_on_one_and_two_threads(method):
    found = []
    for count in (1, 2):
        move_global_state(count)
        with threadpool_limits(count):
            fitness, space = artificial_problem(4, "blocks:3", 0, size=100, batch=16)
            config = EmftoConfig(form_candidates=2, solver=SolverConfig(finalists=2))
            budget = Budget("task_examples", 4000)
            outcome = SEARCHES.get(method)(fitness, space, budget, config, list(range(4)), seed=3)
        found.append((outcome.coefficients.tobytes(), outcome.validation.mean, budget.spent))
    assert found[0] == found[1]
