"""Streamed operators against the benchmark's float64 references: correctly rounded, element by element."""

import pytest

from benchmarks.merge_reference import REFERENCES, distance
from core.merge.engine import merge
from tests.tiny_checkpoints import write_llama, write_recipe

WEIGHTS = (0.4, 0.3, 0.2)
SETTINGS = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {"t": 0.3},
    "ties": {"density": 0.4},
    "breadcrumbs": {"density": 0.8, "gamma": 0.05},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2},
    "sce": {"select_topk": 0.5},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_llama(folder / f"m{i}", i) for i in range(4)]


@pytest.mark.parametrize("twin", ["native", "numpy"])
@pytest.mark.parametrize("method", REFERENCES)
def test_every_element_is_the_correctly_rounded_result(method, twin, models, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFEROPT_KERNELS", twin)
    experts = models[1:2] if method == "slerp" else models[1:]
    settings = SETTINGS[method]
    shared = settings if method in ("slerp", "sce") else {}
    each = [{} if shared else {"weight": w} | settings for w in WEIGHTS]
    base = None if method == "linear" else models[0]
    out = merge(write_recipe(tmp_path / "r.yml", method, experts, base, shared, each), tmp_path / "out")
    found = distance(method, out, experts, models[0], settings | {"weights": WEIGHTS})
    assert found["elements"] > 2000
    assert found["differ_share"] <= 0.0002
    assert found["largest_ulp"] <= 1
