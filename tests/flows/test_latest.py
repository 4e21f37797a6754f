"""``source: latest``: what earlier runs learned is found through MLflow, checked by hash, and stands in the lineage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from core.config import Config
from core.merge.relation import RelationGraph
from core.models.classifier import TextClassifier
from core.transfer.problem import Problem
from flows.runtime import FLOWS
from tasks import earlier, mlflow_store, serving, tracking
from tasks.build_subproblems import GRAPH
from tasks.earlier_experts import compare
from tasks.lineage import trace
from tasks.stage import stage
from tests.tiny_experts import base_folder

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="3 queries")
WORDS = ["the", "movie", "was", "a", "plot", "actor", "scene", "music", "film", "it"]


class Settings(Config):
    x: int = 1


@stage("remember", modules=["core.state"])
def remember(out, config):
    """Write a number."""
    (out.folder / "n.txt").write_text(str(config.x))
    out.budget({"queries": 3})


def ran(flow, x, fail=False, base="a"):
    """A finished (or failed) run of a flow with one stage."""
    with tracking.start(flow, "system", PROBLEM, None, {"flow": flow}) as run:
        run.params({"base": base})
        made = remember(Settings(x=x))
        if fail:
            raise RuntimeError("stopped")
    return made


def test_the_latest_finished_run_is_found(home):
    first = ran("latest-one", 1)
    second = ran("latest-one", 2)
    with pytest.raises(RuntimeError):
        ran("latest-one", 3, fail=True)
    ran("latest-other", 4)
    assert earlier.latest("latest-one", "remember") == second
    assert earlier.latest("latest-one", "remember", x="1") == first
    assert earlier.latest("latest-one", "remember", {"base": "a"}) == second
    assert earlier.outputs("latest-one", "remember") == [second]
    with pytest.raises(ValueError, match=r"no finished run of 'latest-one' with a stage 'remember' \(base b\)"):
        earlier.latest("latest-one", "remember", {"base": "b"})
    assert earlier.outputs("latest-none", "remember") == []


def test_pruned_and_damaged_folders_are_fetched_from_mlflow(home):
    made = ran("latest-pruned", 5)
    Path(made.path, "n.txt").write_text("6")
    found = earlier.latest("latest-pruned", "remember")
    assert found.path != made.path
    assert (found.sha256, found.run) == (made.sha256, made.run)
    assert (found.folder / "n.txt").read_text() == "5"
    assert found.facts()["budget"] == {"queries": 3}
    shutil.rmtree(made.path)
    assert earlier.latest("latest-pruned", "remember") == found


def test_what_mlflow_holds_must_be_what_was_recorded(home):
    made = ran("latest-changed", 7)
    run = mlflow_store.find_run(made.run)
    shutil.rmtree(made.path)
    mlflow_store.client().log_text(run, "8", "n.txt")
    with pytest.raises(ValueError, match="is not what was recorded"):
        earlier.latest("latest-changed", "remember")


@pytest.fixture
def form(tmp_path):
    base, rng = str(base_folder(tmp_path / "base")), np.random.default_rng(0)
    for name, (no, yes) in {"one": ("bad", "good"), "two": ("dark", "bright")}.items():
        labels = rng.integers(0, 2, 240)
        texts = [f"{' '.join(rng.choice(WORDS, 5))} {yes if v else no} {i}" for i, v in enumerate(labels)]
        pd.DataFrame({"text": texts, "label": np.where(labels, "yes", "no")}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
        task = {"version": 1, "kind": "single", "source": {"path": f"{name}.csv"}, "labels": ["no", "yes"],
                "splits": {"validation": 0.2, "test": 0.3}, "fields": {"text": "text", "label": "label"},
                "metric": "accuracy"}  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    tasks = (str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"))
    evolve = FLOWS.get("evolve-merge").form
    given = {"searches": ("emfto",), "methods": ("task_arithmetic",), "granularity": "global"}
    return evolve(size="smoke", base=base, tasks=tasks, **given)


def test_an_evolved_merge_starts_from_the_graph_of_the_one_before(form, home):
    flow = FLOWS.get("evolve-merge")
    with pytest.raises(ValueError, match="no finished run of 'evolve-merge' with a stage 'evolve-recipes'"):
        flow.run(form.model_copy(update={"source": "latest"}))
    first = flow.run(form)
    graph = earlier.latest("evolve-merge", "evolve-recipes", {"base": form.base}, method="emfto")
    second = flow.run(form.model_copy(update={"source": "latest"}))
    searches = {n.sha256 for n in trace(second.mlflow_run_id).walk() if n.name == "evolve-recipes"}
    assert len(searches) == 2, "the second search, and the one before it"
    upstream = [n for n in trace(second.mlflow_run_id).walk() if n.sha256 == graph.sha256]
    assert upstream
    assert {n.run for n in upstream} == {graph.run}
    assert {n.state for n in upstream} == {"intact"}
    knew = RelationGraph.load(graph.folder / GRAPH)
    assert knew.answers, "an empty graph would teach nothing"
    page = (second.artifact.folder / "report.html").read_text()
    assert f"relation graph of run {graph.run[:8]}" in page
    assert graph.run[:8] not in (first.artifact.folder / "report.html").read_text()
    with pytest.raises(ValueError, match=r"no finished run .*granularity kinds"):
        flow.run(form.model_copy(update={"source": "latest", "granularity": "kinds"}))
    weights = Path(form.base, "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="its weights were others"):
        flow.run(form.model_copy(update={"source": "latest"}))


def test_an_evolved_merge_is_packaged_with_its_heads_and_registered(form, home):
    done = FLOWS.get("evolve-merge").run(form)
    packaged = TextClassifier(serving.package_of(f"evolved-encoder@{serving.CHALLENGER}"))
    assert set(packaged.heads) == {"one", "two"}
    assert packaged.predict(["the plot was good 1"], task="one")[0].label in ("yes", "no")
    version = mlflow_store.client().get_model_version_by_alias("evolved-encoder", serving.CHALLENGER)
    assert version.tags["method"] == "emfto with aligned heads"
    tested = {
        r.settings["task"]: r.value for r in done.rows if r.method == version.tags["method"] and r.metric == "accuracy"
    }
    assert json.loads(version.tags["accuracies"]) == {task: tested[task] for task in ("one", "two")}


def test_experts_are_kept_added_replaced_or_removed_by_their_content(form, home, tmp_path):
    """A replaced expert has the name of the old one (its task's): only its hash tells."""
    flow, (one, two) = FLOWS.get("evolve-merge"), form.tasks
    flow.run(form)
    rows = pd.read_csv(tmp_path / "two.csv")
    rows.assign(label=rows.label.map({"yes": "no", "no": "yes"})).to_csv(tmp_path / "two.csv", index=False)
    for end in ("csv", "yaml"):
        text = (tmp_path / f"one.{end}").read_text()
        (tmp_path / f"three.{end}").write_text(text.replace("one.csv", "three.csv"))
    again = {"source": "latest", "tasks": (one, two, str(tmp_path / "three.yaml")), "budget": 600}
    done = flow.run(form.model_copy(update=again | {"searches": ("emfto", "cold_cma")}))
    page = (done.artifact.folder / "report.html").read_text()
    assert "kept one; added three; replaced two" in page
    assert "from a fresh start ended at" in page
    found = earlier.latest("evolve-merge", "evolve-recipes", {"base": form.base}, method="emfto")
    params = mlflow_store.client().get_run(mlflow_store.find_run(found.run)).data.params
    assert json.loads(params["replaced"]) == ["two"]
    mix = compare(found, {"one": found, "four": found})
    assert (mix.kept, mix.added, mix.replaced, mix.removed) == ((), ("four",), ("one",), ("three", "two"))
