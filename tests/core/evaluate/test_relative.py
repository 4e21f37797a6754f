"""Scores relative to each task's own expert, also where an expert scored nothing."""

import numpy as np

from core.evaluate.relative import relative
from core.merge.language_suite import hit_rows, individual_scores


def test_a_task_whose_expert_scored_nothing_is_in_no_mean():
    assert relative({"a": 0.4, "b": 0.2, "c": 0.3}, {"a": 0.8, "b": 0.0, "c": 0.3}) == {
        "a": 50.0,
        "b": None,
        "c": 100.0,
        "mean": 75.0,
    }
    assert relative({"b": 0.2}, {"b": 0.0}) == {"b": None, "mean": None}


def test_rows_of_a_language_model_follow_it():
    right, half, wrong = np.array([True, True]), np.array([True, False]), np.array([False, False])
    individual = individual_scores({"a": right, "b": wrong})
    rows = {(r.metric, r.settings["task"]): r.value for r in hit_rows("merge", {"a": half, "b": half}, individual)}
    assert rows == {
        ("accuracy", "a"): 0.5,
        ("accuracy", "b"): 0.5,
        ("accuracy", "mean"): 0.5,
        ("normalised", "a"): 50.0,
        ("normalised", "b"): None,
        ("normalised", "mean"): 50.0,
    }
