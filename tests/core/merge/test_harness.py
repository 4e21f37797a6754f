"""Tasks of lm-evaluation-harness as fitness: how they are named, and what is asked of the package."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from core.merge import harness
from core.merge.own_fitness import identity, load_function
from tests import tiny_models as tiny

TASKS = ("arc_easy", "piqa")


@pytest.fixture
def package(monkeypatch):
    """A stand-in for the optional package: two tasks, three documents each, in another order than asked."""
    asked = []

    def simple_evaluate(**settings):
        asked.append(settings)
        samples = {
            task: [
                {"doc_id": i, "acc": float(i == k), "acc_norm": 0.25, "metrics": ["acc", "acc_norm"]} for i in (2, 0, 1)
            ]
            for k, task in enumerate(settings["tasks"])
        }
        return {"samples": samples}

    modules = {
        name: ModuleType(name) for name in ("lm_eval", "lm_eval.tasks", "lm_eval.models", "lm_eval.models.huggingface")
    }
    modules["lm_eval"].simple_evaluate = simple_evaluate
    modules["lm_eval.tasks"].TaskManager = lambda include_path: SimpleNamespace(all_tasks=TASKS)
    modules["lm_eval.models.huggingface"].HFLM = lambda **settings: settings
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(harness, "version", lambda name: "1.0")
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: object())
    harness._tasks.cache_clear()
    yield asked
    harness._tasks.cache_clear()


MODEL = SimpleNamespace(generate=None)


def test_a_call_gives_every_example_of_every_task_in_order(package):
    score = load_function("lm-eval:piqa, arc_easy?limit=3&num_fewshot=2")
    np.testing.assert_array_equal(score(MODEL, "words"), [0, 1, 0, 1, 0, 0])
    (asked,) = package
    assert asked["model"] == {"pretrained": MODEL, "tokenizer": "words", "batch_size": 16}
    assert (asked["tasks"], asked["limit"], asked["num_fewshot"]) == (["piqa", "arc_easy"], 3, 2)
    assert {asked[k] for k in ("random_seed", "numpy_random_seed", "torch_random_seed")} == {None}
    np.testing.assert_array_equal(load_function("lm-eval:piqa?metric=acc_norm")(MODEL, None), [0.25] * 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm-eval:arc_esy", "no task 'arc_esy', did you mean 'arc_easy'"),
        ("lm-eval:", "at least 1 item"),
        ("lm-eval:piqa?limt=3", "unknown argument 'limt', did you mean 'limit'"),
        ("lm-eval:piqa?limit=0", "limit: Input should be greater"),
        ("lm-eval:piqa?include_path=nowhere", "'nowhere' is no folder"),
    ],
)
def test_what_cannot_be_asked_is_named(package, name, message):
    with pytest.raises(ValueError, match=message):
        load_function(name)


def test_models_and_metrics_that_do_not_fit_are_named(package):
    with pytest.raises(ValueError, match="for causal language models"):
        load_function("lm-eval:piqa")(object(), None)
    with pytest.raises(ValueError, match="no metric 'accc', did you mean 'acc'"):
        load_function("lm-eval:piqa?metric=accc")(MODEL, None)


def test_its_identity_changes_with_arguments_version_and_own_tasks(package, monkeypatch, tmp_path):
    (tmp_path / "task.yaml").write_text("task: a")
    names = ["lm-eval:piqa", "lm-eval:piqa?limit=3", f"lm-eval:piqa?include_path={tmp_path}"]
    seen = [identity(name) for name in names]
    (tmp_path / "task.yaml").write_text("task: b")
    seen.append(identity(names[-1]))
    monkeypatch.setattr(harness, "version", lambda name: "2.0")
    seen.append(identity(names[0]))
    assert len(set(seen)) == 5


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install \"transferopt\[lm-eval\]\""):
        identity("lm-eval:piqa")


def test_the_package_itself_scores_a_task_of_ones_own(tmp_path):
    """With the real package, where it is installed: repeatable, the global generators untouched."""
    pytest.importorskip("lm_eval", reason="the optional package lm_eval is not installed")
    rows = [{"question": f"is {i} even", "choices": ["good", "bad"], "answer": i % 2} for i in range(12)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "own_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "own_choice.yaml").write_text(yaml.safe_dump(task))
    lm = tiny.causal(seed=0)
    lm.tokenizer.eos_token = "[SEP]"
    score = load_function(f"lm-eval:own_choice?limit=8&include_path={tmp_path}")
    numbers, weights = np.random.get_state()[1].copy(), torch.random.get_rng_state().clone()
    first = score(lm.model, lm.tokenizer)
    assert first.shape == (8,)
    assert set(first) <= {0.0, 1.0}
    np.testing.assert_array_equal(first, score(lm.model, lm.tokenizer))
    np.testing.assert_array_equal(numbers, np.random.get_state()[1])
    assert torch.equal(weights, torch.random.get_rng_state())
