"""What the report of a distillation claims, from answers that are known."""

import json

import numpy as np
import pytest

from core.evaluate.rows import Row
from core.evaluate.statistics import bootstrap_mean
from core.state import seal
from tasks.build_prompts import EXCHANGED, PROMPTS
from tasks.cache_signals import HEAD_ROOM
from tasks.evaluate_students import CORRECT, asked
from tasks.report_students import BASELINE, TEACHER, ReportConfig, _gained, effect_of, report_students
from tasks.stage import METRICS, Artifact, Output

ROOM = {"gain": 0.1, "teacher_only": 3, "student_only": 1, "posterior": 0.8, "disagreement": 0.2, "weight": 1.0}


def test_the_headline_is_the_gain_of_the_method_that_is_served():
    hits = {TEACHER: [100.0] * 9 + [0.0], BASELINE: [100.0] * 5 + [0.0] * 5, "vanilla_kd": [100.0] * 7 + [0.0] * 3}
    intervals = {name: bootstrap_mean(np.array(values)) for name, values in hits.items()}
    said = _gained("vanilla_kd", intervals, {"vanilla_kd": 0.25}, ROOM)["what the transfer gained"]
    assert said == "vanilla_kd: +20.0 points over the student alone (p = 0.25), 50 % of the gap to the teacher"
    assert _gained(BASELINE, intervals, {}, ROOM)["what the transfer gained"].startswith("label_words: +0.0 points")


def answered(hits, labels=8.0):
    """Rows as the stage before writes them: the gold labels of the pool are further labels."""
    for name, values in hits.items():
        budget = {"train_labels": labels + 100 * (name == "gold_pool")}
        for metric, value in (("accuracy", float(np.mean(values))), ("ece", 0.1 * len(name)), ("brier", 0.3)):
            yield Row(method=name, metric=metric, value=value, seed=13, settings={"task": "t"}, budget=budget)


def test_the_effect_is_over_the_student_alone_on_the_same_labels():
    hits = {TEACHER: [1] * 9 + [0], BASELINE: [1] * 5 + [0] * 5, "vanilla_kd": [1] * 7 + [0] * 3, "gold_pool": [1] * 10}
    hits = {name: np.array(values, dtype=float) for name, values in hits.items()}
    costs = [Row(method=m, metric="seconds", value=v) for m, v in ((BASELINE, 2.0), ("vanilla_kd", 5.0))]
    report = effect_of(list(answered(hits)), hits, costs)
    assert report.unequal == ["gold_pool"], "it has read more labels"
    taught = report.of("vanilla_kd")
    assert taught.gain.mean == pytest.approx(0.2)
    assert taught.gain_items.mean == pytest.approx(0.2)
    assert taught.gain_items.low < taught.gain_items.high
    assert taught.mcnemar_p == pytest.approx(0.5)
    assert (taught.p_holm, taught.harm) == (None, None)
    assert taught.calibration == {"ece": pytest.approx(0.1 * (len("vanilla_kd") - len(BASELINE))), "brier": 0}
    assert (report.cost, taught.cost) == ({"seconds": 2.0}, {"seconds": 5.0})


@pytest.mark.parametrize("method", ["vanilla_kd", BASELINE])
@pytest.mark.parametrize("given_up", [False, True])
def test_the_page_explains_methods_and_gate(tmp_path, method, given_up):
    folders = [tmp_path / name for name in ("evaluated", "signals", "student", "tuned", "prompts", "out")]
    for folder in folders:
        folder.mkdir()
    evaluated, signals, student, tuned, prompts, out = folders
    hits = {TEACHER: [1] * 9 + [0], BASELINE: [1] * 5 + [0] * 5, "vanilla_kd": [1] * 7 + [0] * 3}
    np.savez(evaluated / CORRECT, **{name: np.array(values) for name, values in hits.items()})
    Output(evaluated).rows(answered(hits))
    (signals / HEAD_ROOM).write_text(json.dumps(ROOM))
    replaced = {"train": {"in test": 1, "repeated": 2}, "dev": {}} if given_up else {}
    (prompts / PROMPTS).write_text(json.dumps({"replaced": replaced}))
    taught = {"taught.kept": 0.0, "taught.posterior": 0.25} if given_up else {}
    facts = {
        student: {"gate": taught, "budget": {"train_labels": 8, "train_steps": 30}},
        tuned: {"budget": {"train_labels": 8, "train_steps": 12}},
    }
    made = [Artifact(name=f.name, path=str(f), sha256=seal(f, facts.get(f))) for f in folders if f != out]
    config = ReportConfig(title="Distillation", method=method)
    written = Output(out)
    students = dict.fromkeys({method, "vanilla_kd", BASELINE}, made[2])
    given = {"signals": made[1], "students": students, "tuned": made[3], "prompts": made[4]}
    report_students.body(written, config, evaluated=made[0], **given)
    assert written.facts["budget"] == {"train_labels": 8, "train_steps": 72}
    page = (out / "report.html").read_text()
    effect = json.loads((out / "effect.json").read_text())
    assert {m["method"] for m in effect["methods"]} == {TEACHER, "vanilla_kd"}
    logged = json.loads((out / METRICS).read_text())
    assert logged == {f"gain/{TEACHER}": pytest.approx(0.4), "gain/vanilla_kd": pytest.approx(0.2)}
    assert "One seed: no interval over seeds" in page
    assert ("its student given up (posterior 0.25): the student alone is delivered" in page) is given_up
    assert ("train: 1 in test, 2 repeated; dev: none" in page) is (EXCHANGED in page) is given_up
    for words in (
        f"{method}: +",
        "cross-entropy and KD on labelled texts and pool",
        "that the tuned teacher is better",
    ):
        assert words in page


def test_labels_that_a_gate_looks_at_are_counted():
    assert asked("prompt_distiller", 8) == {"dev_labels": 8.0}
    assert asked("vanilla_kd", 8) == {}
