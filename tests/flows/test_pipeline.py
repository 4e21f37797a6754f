"""The chain end to end on a tiny encoder: one lineage, equal budgets, refusals, a registered multi-task model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from core.merge.experts import load_expert
from core.models.classifier import TextClassifier
from core.state import Cache
from flows.cli import app
from flows.pipeline import PipelineForm, problem, studies_of
from flows.runtime import FLOWS
from tasks import align_heads, serving
from tasks.align_heads import SUFFIX
from tasks.check_students import CheckConfig, check_students
from tasks.lineage import trace
from tasks.merge_static import best_on_validation
from tasks.stage import Artifact, Output, source
from tests import tiny_chain

STAGES = {"load-model", "load-data", "build-prompts", "tune-teacher", "search-structure", "cut-start",
          "distill-student", "check-students", "tune-static-merges", "merge", "align-heads", "evaluate-merges",
          "evaluate-teachers", "report-chain"}  # fmt: skip
BATCH = 32
ARMS = ("searched", "first layers")
VALIDATION = 24  # texts a task at size smoke


class Unreadable:
    """Labels of which only the number can be known."""

    def __init__(self, labels):
        self.size = len(labels)

    def __len__(self):
        return self.size

    def _refuse(self, *_, **__):
        raise AssertionError("a label was read while heads were aligned")

    __getitem__ = __iter__ = __array__ = __eq__ = __sub__ = __rsub__ = _refuse
    __hash__ = None


@pytest.fixture(scope="module")
def form(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    base, files = tiny_chain.base_folder(root / "base"), tiny_chain.task_files(root / "tasks")
    given = {"base": str(base), "teacher": str(base), "tasks": tuple(files.values()), "keep": 2}
    return PipelineForm(size="smoke", max_length=16, steps=12, epochs=4, align=True, **given)


@pytest.fixture(scope="module")
def asked():
    """(split, task, texts) of everything that heads were aligned on."""
    return []


@pytest.fixture(scope="module")
def ran(form, asked):
    """The chain, in which a look at a label while heads are aligned ends the run."""
    original = align_heads.objectives

    def unlabelled(encoder, experts, split, *given):
        made = original(encoder, experts, split, *given)
        for task in made.values():
            task.labels = Unreadable(task.labels)
            asked.append((split, task.name, task.size))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align_heads, "objectives", unlabelled)
        return FLOWS.get("pipeline").run(form)


def value(rows, method, metric, task="mean"):
    return next(r.value for r in rows if (r.method, r.metric, r.settings["task"]) == (method, metric, task))


def test_both_arms_are_reported_with_an_interval(ran):
    rows = ran.rows
    for arm in ARMS:
        for model in ("start, frozen", "students", "average", "task_arithmetic"):
            assert 0 <= value(rows, f"{arm}: {model}", "accuracy") <= 1
            assert value(rows, f"{arm}: {model}", "of_teacher") > 0
    less = "searched less first layers, merged"
    assert value(rows, less, "low") <= value(rows, less, "difference") <= value(rows, less, "high")
    assert 0 <= value(rows, less, "p") <= 1
    page = (Path(ran.artifact.path) / "report.html").read_text()
    assert "searched: task_arithmetic" in page
    assert "validation labels" in page


def test_the_effect_is_over_the_first_layers_without_search_distillation_and_merge(ran):
    found = json.loads((Path(ran.artifact.path) / "effect.json").read_text())
    assert (found["without"], found["unit"], found["cells"]) == ("first layers: start, frozen", "train_labels", 2)
    effects = {m["method"]: m for m in found["methods"]}
    base = value(ran.rows, found["without"], "accuracy")
    for method in ("teachers", "searched: students", "searched: average", "first layers: students"):
        gain = value(ran.rows, method, "accuracy") - base
        assert effects[method]["gain"]["mean"] == pytest.approx(gain)
        assert effects[method]["gain_items"]["mean"] == pytest.approx(gain)
        assert effects[method]["harm"] is None
    searched, first = (effects[f"{arm}: students"]["cost"]["seconds"] for arm in ARMS)
    assert min(searched, first) > 0
    assert "ece" in effects["searched: average"]["calibration"]


def test_budgets_are_equal(ran):
    spent = {r.method.partition(":")[0]: r.budget for r in ran.rows if ":" in r.method}
    searched, first = spent["searched"], spent["first layers"]
    assert searched["queries"] == 2
    assert "queries" not in first
    assert searched["train_labels"] == first["train_labels"] == 2 * 16  # eight a class of two classes, two tasks
    assert abs(searched["train_examples"] - first["train_examples"]) <= 2 * BATCH
    assert searched["task_examples"] == first["task_examples"]


def test_the_best_merge_of_both_arms_is_reported_with_heads_aligned_without_labels(ran, asked):
    tasks = ("light", "mood")
    assert set(asked) == {("validation", t, VALIDATION) for t in tasks}
    budgets = {r.method: r.budget for r in ran.rows}
    for arm, parts in _arms(ran).items():
        plain = f"{arm}: {best_on_validation(parts['tune-static-merges'])}"
        fitted = [m for m in budgets if m.startswith(f"{arm}: ") and m.endswith(SUFFIX)]
        assert fitted == [plain + SUFFIX]
        # every text is read by its student and by the merge
        assert budgets[plain + SUFFIX] == budgets[plain] | {"unlabelled_texts": 2.0 * VALIDATION * len(tasks)}
        for task in tasks:
            scored = value(parts["evaluate-merges"].rows(), fitted[0].partition(": ")[2], "accuracy", task)
            assert value(ran.rows, fitted[0], "accuracy", task) == scored
    less = f"searched less first layers, merged{SUFFIX}"
    means = [value(ran.rows, next(m for m in budgets if m.startswith(arm) and m.endswith(SUFFIX)), "accuracy")
             for arm in ("searched: ", "first layers: ")]  # fmt: skip
    assert value(ran.rows, less, "difference") == pytest.approx(100 * (means[0] - means[1]))
    page = (Path(ran.artifact.path) / "report.html").read_text()
    for words in (f"best on validation,{SUFFIX}", "unlabelled texts", "aligned heads, searched"):
        assert words in page
    assert all(parts["align-heads"].sha256[:16] in page for parts in _arms(ran).values())


def _arms(ran):
    """Arm -> stage -> its artifact, as the report read them."""
    read = trace(ran.mlflow_run_id).inputs[0].inputs
    names = ("tune-static-merges", "align-heads", "evaluate-merges")
    found = {n: [source(n, Path(node.path)) for node in read if node.name == n] for n in names}
    assert {len(both) for both in found.values()} == {len(ARMS)}
    return {arm: {n: found[n][i] for n in names} for i, arm in enumerate(ARMS)}


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
    assert len(lines) == 30


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


def test_the_packaged_heads_are_the_aligned_ones(ran):
    package = serving.package_of("pipeline-student@challenger")
    classifier, parts = TextClassifier(package), _arms(ran)["searched"]
    best = best_on_validation(parts["tune-static-merges"])
    fitted = align_heads.aligned_heads(parts["align-heads"])[best]
    assert set(fitted) == set(classifier.heads)
    own = [load_expert(folder).head()[0] for folder in _folders("distill-student")]
    for task, head in classifier.heads.items():
        np.testing.assert_array_equal(head.weight, fitted[task].weight)
        np.testing.assert_array_equal(head.bias, fitted[task].bias)
        assert not any(np.allclose(head.weight, weight, atol=1e-4) for weight in own)
    assert best + SUFFIX in (Path(package) / "README.md").read_text()
    assert json.loads((Path(package) / "classifier.json").read_text())["method"] == best + SUFFIX


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


def test_two_task_files_of_one_name_are_refused(form, tmp_path):
    same = shutil.copy(form.tasks[0], tmp_path)
    with pytest.raises(ValueError, match=r"are both the task '\w+'; rename one of the files"):
        problem(form.model_copy(update={"tasks": (form.tasks[0], str(same))}).resolved())


def test_an_artifact_of_a_start_carries_its_hash(ran):
    for folder in _folders("cut-start"):
        start: Artifact = source("cut-start", folder)
        card = json.loads((folder / "start.json").read_text())
        assert start.facts()["start_sha256"] == card["weights_sha256"]
        assert start.facts()["structure"] == card["structure"]


def test_without_alignment_all_other_rows_are_the_same(ran, form):
    """Last: it registers a model of its own."""
    plain = form.model_copy(update={"align": False})
    states = {line.stage: line.state for line in FLOWS.get("pipeline").plan(plain)}
    assert set(states) == STAGES - {"align-heads"} | {"package-merge"}
    assert {s for s, state in states.items() if state == "run"} == {"evaluate-merges", "report-chain", "package-merge"}
    without = FLOWS.get("pipeline").run(plain)
    assert without.rows == [r for r in ran.rows if not r.method.endswith(SUFFIX)]
    assert "aligned" not in (Path(without.artifact.path) / "report.html").read_text()
    package = Path(serving.package_of("pipeline-student@challenger"))
    assert not json.loads((package / "classifier.json").read_text())["method"].endswith(SUFFIX)
