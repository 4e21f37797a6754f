"""The chain end to end on a tiny encoder: one lineage, equal budgets, refusals, a registered multi-task model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.models.classifier import TextClassifier
from core.state import Cache
from flows.cli import app
from flows.pipeline import PipelineForm, problem, studies_of
from flows.runtime import FLOWS
from tasks import serving
from tasks.check_students import CheckConfig, check_students
from tasks.lineage import trace
from tasks.stage import Artifact, Output, source
from tests import tiny_chain

STAGES = {"load-model", "load-data", "build-prompts", "tune-teacher", "search-structure", "cut-start",
          "distill-student", "check-students", "tune-static-merges", "merge", "evaluate-merges", "evaluate-teachers",
          "report-chain"}  # fmt: skip
BATCH = 32


@pytest.fixture(scope="module")
def form(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    base, files = tiny_chain.base_folder(root / "base"), tiny_chain.task_files(root / "tasks")
    given = {"base": str(base), "teacher": str(base), "tasks": tuple(files.values()), "keep": 2}
    return PipelineForm(size="smoke", max_length=16, steps=12, epochs=4, **given)


@pytest.fixture(scope="module")
def ran(form):
    return FLOWS.get("pipeline").run(form)


def value(rows, method, metric, task="mean"):
    return next(r.value for r in rows if (r.method, r.metric, r.settings["task"]) == (method, metric, task))


def test_both_arms_are_reported_with_an_interval(ran):
    rows = ran.rows
    for arm in ("searched", "first layers"):
        for model in ("start, frozen", "students", "average", "task_arithmetic"):
            assert 0 <= value(rows, f"{arm}: {model}", "accuracy") <= 1
            assert value(rows, f"{arm}: {model}", "of_teacher") > 0
    less = "searched less first layers, merged"
    assert value(rows, less, "low") <= value(rows, less, "difference") <= value(rows, less, "high")
    assert 0 <= value(rows, less, "p") <= 1
    page = (Path(ran.artifact.path) / "report.html").read_text()
    assert "searched: task_arithmetic" in page
    assert "validation labels" in page


def test_budgets_are_equal(ran):
    spent = {r.method.partition(":")[0]: r.budget for r in ran.rows if ":" in r.method}
    searched, first = spent["searched"], spent["first layers"]
    assert searched["queries"] == 2
    assert "queries" not in first
    assert searched["train_labels"] == first["train_labels"] == 2 * 16  # eight a class of two classes, two tasks
    assert abs(searched["train_examples"] - first["train_examples"]) <= 2 * BATCH
    assert searched["task_examples"] == first["task_examples"]


def test_one_lineage_leads_from_the_metric_to_the_teacher(ran):
    root = trace(ran.mlflow_run_id)
    nodes = list(root.walk())[1:]
    assert {n.state for n in nodes} == {"intact"}
    assert {n.name for n in nodes} == STAGES
    inputs = next(r.inputs for r in ran.rows if r.method == "searched: students")
    path = ["report-chain", "evaluate-merges", "merge", "distill-student", "tune-teacher", "load-model"]
    assert inputs["teacher"] in _ends(root, path)
    starts = {n.sha256 for n in nodes if n.name == "cut-start"}
    assert len(starts) == 2
    shown = CliRunner().invoke(app, ["lineage", ran.mlflow_run_id])
    assert shown.exit_code == 0
    assert inputs["teacher"][:12] in shown.output


def _ends(node, names):
    """Hashes of the nodes reached from ``node`` by inputs of these names."""
    if not names:
        return {node.sha256}
    return set().union(*(_ends(child, names[1:]) for child in node.inputs if child.name == names[0]))


def test_everything_is_found_again(ran, form):
    lines = FLOWS.get("pipeline").plan(form)
    assert {line.stage for line in lines} == STAGES | {"package-merge"}
    assert {line.state for line in lines} == {"cached"}
    assert len(lines) == 28


def test_students_of_two_arms_are_refused(ran, tmp_path):
    starts = [source("cut-start", f) for f in _folders("cut-start")]
    students = {(c["base_sha256"], c["task"]): f for f, c in _cards()}
    first, second = (s.facts()["start_sha256"] for s in starts)
    mixed = {t: source("distill-student", students[sha, t]) for sha, t in ((first, "mood"), (second, "light"))}
    with pytest.raises(ValueError, match=r"students of different (structures|cut weights) cannot be merged"):
        check_students.body(Output(tmp_path), CheckConfig(), start=starts[0], students=mixed)
    assert not list(tmp_path.iterdir())
    own = {t: source("distill-student", students[first, t]) for t in ("mood", "light")}
    check_students.body(Output(tmp_path), CheckConfig(), start=starts[0], students=own)
    assert json.loads((tmp_path / "checked.json").read_text())["start_sha256"] == first


def _folders(stage: str) -> list[Path]:
    return sorted(p for p in (Cache().root / stage).iterdir() if (p / "artifact.json").is_file())


def _cards():
    return [(f, json.loads((f / "expert.json").read_text())) for f in _folders("distill-student")]


def test_the_model_is_registered_and_answers_every_task(ran):
    package = serving.package_of("pipeline-student@challenger")
    classifier = TextClassifier(package)
    assert set(classifier.heads) == {"mood", "light"}
    assert classifier.predict(["a good movie"], task="mood")[0].label in ("bad", "good")
    card = (Path(package) / "README.md").read_text()
    assert "## Licence" in card
    assert "cut to" in card


def test_a_plan_lists_the_stages_and_runs_nothing(form):
    other = form.model_copy(update={"seed": 5})
    lines = FLOWS.get("pipeline").plan(other)
    assert {line.stage for line in lines} == STAGES | {"package-merge"}
    assert sum(line.stage == "distill-student" for line in lines) == 4
    assert {line.state for line in lines if line.stage == "distill-student"} == {"run"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distillation": "label_words"}, "unknown distillation 'label_words'"),
        ({"searcher": "bridge"}, "predictor_onehot"),
        ({"methods": ("tsv",)}, "unknown static method 'tsv'"),
    ],
)
def test_wrong_choices_are_refused_before_work(form, change, message):
    with pytest.raises(ValueError, match=message):
        studies_of(form.model_copy(update=change).resolved(), list(form.tasks))


def test_one_task_is_no_chain(form):
    with pytest.raises(ValueError, match="at least two tasks"):
        problem(form.model_copy(update={"tasks": form.tasks[:1]}).resolved())


def test_an_artifact_of_a_start_carries_its_hash(ran):
    for folder in _folders("cut-start"):
        start: Artifact = source("cut-start", folder)
        card = json.loads((folder / "start.json").read_text())
        assert start.facts()["start_sha256"] == card["weights_sha256"]
        assert start.facts()["structure"] == card["structure"]
