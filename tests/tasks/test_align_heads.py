"""Aligned heads in the stages: fitted to what experts answer, scored beside the experts' own, labels never read."""

import json

import numpy as np
import pytest

from core.data.examples import Examples
from core.merge.experts import load_expert
from tasks import align_heads, evaluate_merges
from tasks.stage import Artifact, Output
from tests import tiny_experts as te


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return te.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world, tmp_path, monkeypatch):
    """Calls a stage's body on the tiny experts; the split that was asked for is what its tasks are made of."""
    flipped = []

    def objectives(encoder, experts, split, limit=None, seed=0, probe=False):
        made = world.objectives(split)
        if split in flipped:
            for task in made.values():
                task.labels = 1 - task.labels
        return made if experts else {}

    for module in (align_heads, evaluate_merges):
        monkeypatch.setattr(module, "objectives", objectives)
        monkeypatch.setattr(module, "experts_of", lambda _: [load_expert(f) for f in world.folders.values()])
    monkeypatch.setattr(evaluate_merges, "tested", lambda expert, _: Examples([expert.task], None, [0]))

    def call(stage, name, config, flip=(), **inputs):
        flipped[:] = flip
        out = Output(tmp_path / name)
        out.folder.mkdir()
        stage.body(out, config, **inputs)
        (out.folder / "facts.json").write_text(json.dumps(out.facts))
        return Artifact(name=name, path=str(out.folder), sha256=""), out

    return call


def artifacts(world):
    return {t: Artifact(name="train-expert", path=str(f), sha256=t) for t, f in world.folders.items()}


def test_heads_are_fitted_without_labels_and_scored_beside_the_experts_own(world, run):
    experts = artifacts(world)
    merged = {"one": experts["plot"]}  # stands for a merge that serves two of three tasks badly
    config = align_heads.AlignConfig(examples=60)
    made, out = run(align_heads.align_heads, "a", config, experts=experts, merged=merged)
    again, _ = run(align_heads.align_heads, "b", config, flip=["validation"], experts=experts, merged=merged)
    heads, others = align_heads.aligned_heads(made)["one"], align_heads.aligned_heads(again)["one"]
    assert set(heads) == set(world.folders)
    for task, head in heads.items():
        np.testing.assert_array_equal(head.weight, others[task].weight)  # labels say nothing
        own = load_expert(world.folders[task]).head()[0]
        assert np.allclose(head.weight, own, atol=1e-3) == (task == "plot")  # whose encoder did not move
    assert out.facts["budget"] == {"unlabelled_texts": 2.0 * 3 * 60}

    with pytest.MonkeyPatch.context() as patch:
        budgets = {"a": out.facts["budget"], "tuned": {"task_examples": 7.0}}
        patch.setattr(Artifact, "facts", lambda artifact: {"budget": budgets[artifact.name]})
        base = Artifact(name="load-model", path=str(world.base), sha256="base")
        tuned = Artifact(name="tuned", path=str(world.base), sha256="tuned")
        inputs = {"base": base, "experts": experts, "merged": merged, "spent": {"one": tuned}, "aligned": made}
        _, evaluated = run(evaluate_merges.evaluate_merges, "e", evaluate_merges.EvaluateConfig(), **inputs)
    rows = {
        r.method: r
        for r in Artifact(name="e", path=str(evaluated.folder), sha256="").rows()
        if (r.metric, r.settings["task"]) == ("normalised", "mean")
    }
    aligned = rows["one" + align_heads.SUFFIX]
    assert aligned.value > rows["one"].value
    assert aligned.inputs == rows["one"].inputs == {"model": "plot"}
    assert "unlabelled_texts" not in rows["one"].budget
    assert aligned.budget == rows["one"].budget | {"unlabelled_texts": 2.0 * 3 * 60}
    assert aligned.budget["task_examples"] == 7.0
