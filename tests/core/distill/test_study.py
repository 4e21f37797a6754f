"""Every method of the table, end to end on tiny models from folders and a task from a csv file."""

import csv

import numpy as np
import pytest

from core.data.examples import Examples
from core.data.few_shot import FewShot
from core.data.tasks import load_task
from core.distill.distiller import DistillConfig
from core.distill.interface import LossSpec
from core.distill.methods import METHODS, Method
from core.distill.prompts import phrases, task_prompt
from core.distill.students import ModelConfig
from core.distill.study import Study, StudyConfig
from core.distill.teachers import TeacherConfig, split_shown
from core.distill.tuning import objective, tune_objective
from core.models.train import TrainConfig
from core.state import Cache
from tests import tiny_models as tiny

GOOD, BAD = ("good", "great", "fine", "fun", "lovely", "bright"), ("bad", "terrible", "awful", "boring", "dull", "dark")
SHORT = TrainConfig(lr=1e-2, epochs=4, batch_size=8, precision="float32", dropout=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A task file, and folders of a teacher encoder, a student encoder and a causal LM."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    with open(root / "rows.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["text", "label"])
        for i in range(160):
            label = i % 2
            words = rng.choice(GOOD if label else BAD, size=3)
            rest = rng.choice(["movie", "film", "plot", "story", "music", "actor", "scene"], size=3)
            writer.writerow([" ".join(["the", *rest, "was", *words]), ["negative", "positive"][label]])
    (root / "films.yaml").write_text(
        "kind: single\nsource: {path: rows.csv}\nlabels: [negative, positive]\nmetric: accuracy\n"
        'template: "{text} it was {mask} ."\ncausal_template: "review : {text} the movie was"\n'
        "label_words: [bad, good]\n"
    )
    for name, model in (("teacher", tiny.encoder(24, 4, 1)), ("student", tiny.encoder(16, 2, 0))):
        model.backbone.save_pretrained(root / name)
        model.tokenizer.save_pretrained(root / name)
    lm = tiny.causal()
    lm.model.save_pretrained(root / "lm")
    lm.tokenizer.save_pretrained(root / "lm")
    return root


def config(world, **changes):
    teacher = TeacherConfig(asset=str(world / "teacher"), train=SHORT)
    student = ModelConfig(asset=str(world / "student"))
    settings = {"task": str(world / "films.yaml"), "k": 6, "n": 3, "seed": 13, "steps": 6, "fine_tuning": SHORT}
    return StudyConfig(**({"teacher": teacher, "student": student} | settings | changes))


@pytest.fixture(scope="module")
def study(world, tmp_path_factory):
    return Study(config(world), Cache(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "paper"])
def test_every_method_answers_and_counts_its_labels(method, study):
    answers = study.run(method)
    assert answers.test.shape == (len(study.few.test), 2)
    assert np.isfinite(answers.test).all()
    labels = answers.budget.get("train_labels", 0)
    expected = {"unlabelled_only": 0, "gold_ceiling": 12 + len(study.few.pool)}
    assert labels == expected.get(method, 12)
    again = study.run(method)
    np.testing.assert_array_equal(answers.test, again.test)


def test_published_preset_runs(world, tmp_path):
    paper = METHODS["paper"]
    short = paper.distill.train.model_copy(update={"epochs": 1})
    spec = paper.model_copy(update={"distill": paper.distill.model_copy(update={"train": short})})
    answers = Study(config(world), Cache(tmp_path)).run("paper", spec)
    assert np.isfinite(answers.test).all()


def test_a_cached_run_never_loads_the_teacher(world, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = Study(config(world), cache)
    for method in ("vanilla_kd", "prompt_distiller"):
        first.cache_signals(method)
    first.teacher_answers("tuned")

    def refuse(*args, **kwargs):
        raise AssertionError("the teacher was loaded")

    second = Study(config(world), cache)
    monkeypatch.setattr(second, "teacher", refuse)
    second.run("vanilla_kd")
    second.run("prompt_distiller")


def test_gate_gives_the_baseline_where_it_hears_nobody(world, tmp_path, monkeypatch):
    study = Study(config(world), Cache(tmp_path))
    room = study.head_room()
    silent = type(room)(-0.1, 0, 4, 0.05, 0.5, 0.0)
    monkeypatch.setattr(study, "head_room", lambda: silent)
    answers, alone = study.run("prompt_distiller"), study.run("label_words")
    np.testing.assert_array_equal(answers.test, alone.test)
    assert answers.facts["weight"] == 0.0


def test_a_taught_student_is_given_up_where_the_one_alone_is_probably_better(world, tmp_path, monkeypatch):
    study = Study(config(world), Cache(tmp_path))
    room = study.head_room()
    monkeypatch.setattr(study, "head_room", lambda: type(room)(0.1, 4, 0, 0.95, 0.5, 1.0))
    found, bound = {}, study.config.gate.keep_above
    for kept in (False, True):
        p = bound + 0.01 if kept else bound
        monkeypatch.setattr(study, "taught_better", lambda _, p=p: type(room)(0.0, 1, 1, p, 0.5, 1.0))
        study.cache = Cache(tmp_path / str(kept))
        found[kept] = study.run("prompt_distiller")
    alone = study.run("label_words")
    np.testing.assert_array_equal(found[False].test, alone.test)
    assert not np.array_equal(found[True].test, alone.test)
    assert found[False].budget["train_steps"] > found[True].budget["train_steps"]  # both trainings count
    assert found[False].budget["train_labels"] == found[True].budget["train_labels"] == 12  # the labels are the same
    assert (found[False].facts["taught.kept"], found[True].facts["taught.kept"]) == (0, 1)


def test_no_phrase_is_a_text_of_dev_or_test(world, tmp_path):
    study, spec = Study(config(world), Cache(tmp_path)), METHODS["prompt_distiller"]
    pool, trained = study.few.pool, study._transfer_set(spec, spec.distill, study.few.pool)
    cut = trained.texts[len(study.few.train) + len(pool) :]
    assert cut
    assert all(any(p in t for t in pool.texts) for p in cut)
    leaked = Examples([cut[0].upper(), *study.few.test.texts[1:]], None, study.few.test.labels)
    study.few = FewShot(**(vars(study.few) | {"test": leaked}))
    again = study._transfer_set(spec, spec.distill, pool).texts
    assert cut[0] not in again


def test_a_short_schedule_reads_every_text_and_no_more_phrases_than_it_has_room_for(world, tmp_path):
    spec = METHODS["prompt_distiller"]
    sizes = {}
    for steps in (1, 3, 60):
        study = Study(config(world).model_copy(update={"steps": steps}), Cache(tmp_path))
        stepped = study._stepped(spec)
        sizes[steps] = study._transfer_set(stepped, stepped.distill, study.few.pool).sizes
    train, pool = sizes[60][:2]
    assert sizes[60][2] == 3 * pool
    assert sizes[3][2] == 3 * 32 - train - pool
    assert sizes[1] == (train, pool)


def test_the_taught_student_is_judged_on_dev_rows(world, study):
    taught = study.train("vanilla_kd")[0]
    kept = study.taught_better(taught)
    assert 0 < kept.posterior < 1
    assert kept.teacher_only + kept.student_only <= len(study.few.dev)


def test_teacher_calibrations_and_reproducibility(world, study, tmp_path):
    raw, balanced = study.teacher_answers("pretrained"), study.teacher_answers("pretrained", "pool")
    shift = raw.test - balanced.test
    np.testing.assert_allclose(shift - shift[0], 0, atol=1e-3)
    assert study.teacher_answers("pretrained", "content_free").test.shape == raw.test.shape
    with pytest.raises(ValueError, match="did you mean 'pool'"):
        study.teacher_answers("tuned", "pol")
    other = Study(config(world), Cache(tmp_path))
    np.testing.assert_array_equal(other.teacher_answers("tuned").test, study.teacher_answers("tuned").test)


def test_other_kinds_of_teacher_and_student(world, tmp_path):
    lm = {"asset": str(world / "lm"), "kind": "causal"}
    student = ModelConfig(**lm, layers=2)
    study = Study(config(world, teacher=TeacherConfig(**lm, train=SHORT), student=student), Cache(tmp_path))
    assert np.isfinite(study.run("vanilla_kd").test).all()
    with pytest.raises(ValueError, match="needs a sentence encoder"):
        study.run("setfit")


def test_ensemble_of_teachers_is_weighted_by_its_evidence(world, tmp_path):
    more = (TeacherConfig(asset=str(world / "lm"), kind="causal", train=SHORT),)
    study = Study(config(world, more_teachers=more), Cache(tmp_path))
    weights = study.teacher_weights()
    assert len(weights) == 2
    assert weights.sum() == pytest.approx(1) or weights.sum() == 0
    assert np.isfinite(study.run("vanilla_kd").test).all()


def test_cross_fitted_gate_uses_twice_the_rows(world, tmp_path):
    study = Study(config(world, gate={"cross_fit": True}), Cache(tmp_path))
    assert len(study.held_out_answers()[2]) == 2 * len(study.few.dev)
    assert 0 <= study.head_room().posterior <= 1


def test_a_language_model_is_shown_examples_that_it_is_not_tuned_on(world, tmp_path):
    lm = {"asset": str(world / "lm"), "kind": "causal", "train": SHORT}
    cache = Cache(tmp_path)
    study = Study(config(world, teacher=TeacherConfig(**lm, demonstrations=1)), cache)
    shown, rest = split_shown(study.few.train, 1)
    assert sorted(d.label for d in shown) == [0, 1]
    assert not {d.text for d in shown} & set(rest.texts)
    assert len(rest) == len(study.few.train) - 2
    for which in ("pretrained", "tuned"):
        prompt = study.teacher(which).render("the plot")
        assert all(d.text in prompt for d in shown)
        assert prompt.endswith("review : the plot the movie was")
    assert study.run("unlabelled_only").budget["train_labels"] == 2  # those that every prompt shows
    alone = Study(config(world, teacher=TeacherConfig(**lm)), cache)
    assert {alone.identity(w) for w in ("pretrained", "tuned")} & {
        study.identity(w) for w in ("pretrained", "tuned")
    } == set()
    with pytest.raises(ValueError, match="leave nothing to tune on of 6 a class"):
        split_shown(study.few.train, 6)
    with pytest.raises(ValueError, match="a sentence encoder reads one text"):
        TeacherConfig(asset="e", demonstrations=1)


def test_unknown_method(study):
    with pytest.raises(ValueError, match="did you mean 'vanilla_kd'"):
        study.run("vanila_kd")


def test_tuning_searches_with_a_counted_budget(study):
    found, budget = tune_objective([study], evaluations=3, optimizer="random", seed=1)
    assert len(found.trials) == 3
    assert budget.counts == {"evaluations": 3, "train_steps": 18}
    assert found.best.score == max(t.score for t in found.trials)
    assert objective(found.best.candidate).losses[1].temperature == pytest.approx(found.best.candidate[0])


def test_a_ceiling_follows_the_labels_of_its_pool(world, tmp_path):
    study = Study(config(world), Cache(tmp_path))
    spec = METHODS["gold_ceiling"]
    before = study.key("gold_ceiling", spec), study.key("vanilla_kd", METHODS["vanilla_kd"])
    few = study.few
    turned = type(few)(**(vars(few) | {"pool_gold": tuple(1 - y for y in few.pool_gold)}))
    other = study._with(turned)
    assert other.key("gold_ceiling", spec) != before[0]
    assert other.key("vanilla_kd", METHODS["vanilla_kd"]) == before[1]


def test_a_study_may_have_no_pool(world, tmp_path):
    answers = Study(config(world, n=0), Cache(tmp_path)).run("no_unlabelled")
    assert answers.pool.shape == (0, 2)


def test_what_the_teacher_alone_has_read_counts(world, study):
    spec = Method(summary="KD alone", distill=DistillConfig(losses=(LossSpec(name="kd_tuned"),)), labels=False)
    assert study.run("kd alone", spec).budget["train_labels"] == 12


def test_a_users_task_is_not_spoken_of_like_a_built_in_one_of_its_name(world, tmp_path):
    mine = tmp_path / "subj.yaml"
    mine.write_text((world / "films.yaml").read_text().replace("rows.csv", str(world / "rows.csv")))
    assert task_prompt(load_task(mine)).phrase == task_prompt(load_task(world / "films.yaml")).phrase
    assert "subj" in phrases()
