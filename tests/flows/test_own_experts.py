"""Flows merge and evolve-merge with models fine-tuned elsewhere, alone and beside experts they train."""

import shutil
from pathlib import Path

import pytest
import yaml

from core.merge.experts import load_expert
from flows.merge import MergeForm
from flows.runtime import FLOWS
from tests import tiny_chain


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Base, task files, and a classifier of transformers for each task."""
    root = tmp_path_factory.mktemp("own")
    base, files = tiny_chain.base_folder(root / "base"), tiny_chain.task_files(root / "tasks")
    models = {name: str(tiny_chain.classifier(base, file, root / name)) for name, file in files.items()}
    return base, files, models


def form(kind, given, experts, **more):
    return kind(size="smoke", base=str(given[0]), experts=experts, max_length=16, test_examples=60, **more)


def value(rows, method, task="mean"):
    return next(r for r in rows if (r.method, r.metric, r.settings["task"]) == (method, "accuracy", task))


def test_merge_takes_a_model_fine_tuned_elsewhere_beside_one_it_trains(given):
    _, files, models = given
    asked = form(MergeForm, given, {files["mood"]: models["mood"]}, tasks=(files["light"],), examples=48)
    assert {"take-expert", "train-expert"} <= {line.stage for line in FLOWS.get("merge").plan(asked)}
    done = FLOWS.get("merge").run(asked)
    assert value(done.rows, "expert mood", "mood").value > 0.9
    assert value(done.rows, "individual experts").budget == {
        "train_labels": 96.0
    }  # of the head, and of the trained one
    assert {r.settings["task"] for r in done.rows} == {"mood", "light", "mean"}
    cards = [load_expert(p.parent).card for p in _cache().glob("take-expert/*/expert.json")]
    assert models["mood"] in {card["model"] for card in cards}
    assert models["mood"] in (Path(done.artifact.path) / "report.html").read_text()


@pytest.mark.parametrize("flow", ["merge", "evolve-merge"])
def test_where_all_are_given_none_is_trained(given, flow):
    _, files, models = given
    asked = form(FLOWS.get(flow).form, given, {files[n]: models[n] for n in files})
    states = {line.stage: line for line in FLOWS.get(flow).plan(asked)}
    assert "take-expert" in states
    assert "train-expert" not in states


def test_wrong_ones_are_named_in_the_plan(given):
    _, files, models = given
    plan = FLOWS.get("merge").plan
    with pytest.raises(Exception, match=r"nowhere.* does not exist"):
        plan(form(MergeForm, given, {files["mood"]: "./nowhere", files["light"]: models["light"]}))
    with pytest.raises(ValueError, match="at least two tasks"):
        plan(form(MergeForm, given, {files["mood"]: models["mood"]}))
    with pytest.raises(Exception, match="unknown task 'mod'"):
        plan(form(MergeForm, given, {"mod": models["mood"]}))


def test_names_that_would_be_mixed_up_are_refused_by_the_plan(given, tmp_path):
    _, files, models = given
    plan, other = FLOWS.get("merge").plan, tmp_path / "other"
    other.mkdir()
    namesake = shutil.copy(files["mood"], other / Path(files["mood"]).name)
    with pytest.raises(ValueError, match="are both the task 'mood'; rename one of the files"):
        plan(form(MergeForm, given, {}, tasks=(files["mood"], str(namesake), files["light"])))
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"tasks": [files["mood"], str(namesake), files["light"]]}))
    with pytest.raises(ValueError, match="are both the task 'mood'"):
        plan(form(MergeForm, given, {}, suite=str(suite)))
    with pytest.raises(ValueError, match="are both the task 'mood'"):
        plan(form(MergeForm, given, {files["mood"]: models["mood"], str(namesake): models["light"]}))
    for name in ("items.yaml", "mood.v2.yaml"):
        named = str(shutil.copy(files["mood"], Path(files["mood"]).with_name(name)))
        with pytest.raises(ValueError, match="a head cannot be called"):
            plan(form(MergeForm, given, {}, tasks=(named, files["light"])))


def test_an_operator_for_two_is_refused_for_three_before_training(given):
    _, files, _ = given
    third = str(shutil.copy(files["mood"], Path(files["mood"]).with_name("third.yaml")))
    tasks = (files["mood"], files["light"], third)
    for flow in ("merge", "evolve-merge"):
        with pytest.raises(ValueError, match="methods slerp merge two models, but there are 3 tasks"):
            FLOWS.get(flow).plan(form(FLOWS.get(flow).form, given, {}, tasks=tasks, methods=("slerp",)))


def test_a_base_of_others_is_told_before_anything_is_trained(given, tmp_path):
    files = given[1]
    other = tiny_chain.base_folder(tmp_path / "other", seed=5)
    foreign = str(tiny_chain.classifier(other, files["mood"], tmp_path / "foreign"))
    asked = form(MergeForm, given, {files["mood"]: foreign}, tasks=(files["light"],), examples=44)
    with pytest.raises(ValueError, match="fine-tuned from another base"):
        FLOWS.get("merge").run(asked)
    assert {line.stage: line.state for line in FLOWS.get("merge").plan(asked)}["train-expert"] == "run"


def _cache():
    from core.state import home

    return home() / "cache"
