"""Signals, gate, transfer set, teachers, students, export."""

import importlib.util
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from core.data.examples import Examples
from core.distill import students
from core.distill.export import export_onnx, export_student, load_student
from core.distill.gate import GateConfig, head_room, teacher_weights
from core.distill.methods import METHODS
from core.distill.prompts import phrases, task_prompt
from core.distill.signals import Signals, cached_signals
from core.distill.study import weighted
from core.distill.teachers import EarlyStopping, TeacherConfig, check_labels, prepare_tuning, tune
from core.distill.transfer_set import PhraseConfig, cut_phrases, transfer_set
from core.models.classifier import TextClassifier
from core.models.prompt import Prompt, prompted
from core.models.train import TrainConfig
from core.models.used_words import only_used_words
from core.state import Cache, StateError
from core.transfer.budget import Budget
from tests import tiny_models as tiny

PROMPT = Prompt(
    masked="{text} . it was {answer} .",
    causal="review : {text} . in summary , the movie was {answer}",
    words=[["bad"], ["good"]],
    phrase="a {answer} movie",
)
FEW = Examples(tiny.TEXTS, None, tiny.LABELS)
TUNING = TrainConfig(lr=1e-2, epochs=10, batch_size=4, precision="float32", dropout=False)
KINDS = {"masked": tiny.masked, "causal": tiny.causal, "encoder": tiny.encoder}


def teacher(kind="encoder"):
    return prompted(KINDS[kind](), PROMPT)


def test_cached_signals_do_not_build_the_teacher_again(tmp_path):
    cache, calls = Cache(tmp_path), []

    def make():
        calls.append(1)
        return teacher()

    first = cached_signals(cache, "t", make, tiny.TEXTS, layers=[1, 3], answers=True)
    again = cached_signals(
        cache, "t", lambda: pytest.fail("the teacher was built"), tiny.TEXTS, layers=[3, 1], answers=True
    )
    assert calls == [1]
    assert isinstance(again.logits, np.memmap)
    assert again.logits.dtype == np.float16
    assert first.hidden.shape == (8, 2, 16)
    assert first.answers.shape == (8, 2, 16)
    np.testing.assert_array_equal(first.hidden, again.hidden)
    cached_signals(cache, "t", make, tiny.TEXTS[:3], layers=[1])
    cached_signals(cache, "other", make, tiny.TEXTS, layers=[1, 3], answers=True)
    assert len(calls) == 3
    with pytest.raises(ValueError, match="layers \\[9\\] do not exist"):
        cached_signals(cache, "t", make, tiny.TEXTS, layers=[9])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_signals_of_every_kind(tmp_path, kind):
    made = cached_signals(Cache(tmp_path), kind, lambda: teacher(kind), tiny.TEXTS, layers=[0, 3], answers=True)
    assert made.answers.shape == (8, 2, 16)
    assert not np.allclose(made.answers[:, 0], made.answers[:, 1])


def test_joined_signals():
    a = Signals(np.zeros((2, 3)), np.zeros((2, 1, 4)), (2,))
    assert len(a + a) == 4
    with pytest.raises(ValueError, match="3 and 2 labels"):
        a + Signals(np.zeros((2, 2)), np.zeros((2, 1, 4)), (2,))
    with pytest.raises(ValueError, match="layers"):
        a + Signals(np.zeros((2, 3)), np.zeros((2, 1, 4)), (1,))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("tuning", ["full", "lora", "prompt"])
def test_tuning_fits_the_few_and_trains_only_what_it_says(kind, tuning):
    model, budget = teacher(kind), Budget("train_steps")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    torch.manual_seed(4)
    state = torch.get_rng_state()
    schedule = TUNING.model_copy(update={"lr": 0.3, "epochs": 20}) if tuning == "prompt" else TUNING
    config = TeacherConfig(asset="tiny", kind=kind, tuning=tuning, train=schedule, soft_tokens=4)
    report = tune(model, FEW, config, seed=1, budget=budget)
    assert torch.equal(state, torch.get_rng_state())
    assert np.mean(report.losses[-4:]) < np.mean(report.losses[:4])
    assert budget.counts["train_labels"] == 8
    after = dict(model.named_parameters())
    if tuning != "full":
        kept = [n for n in after if n in before and not n.startswith("head")]
        assert all(torch.equal(before[n], after[n]) for n in kept)
        added = [n for n, p in after.items() if p.requires_grad and not n.startswith("head")]
        assert added
        assert all("lora_" in n or "prompt_encoder" in n for n in added)
    if tuning == "full":
        assert (students.answers(model, FEW, "float32").argmax(1) == tiny.LABELS).all()


def test_last_layers_only():
    model = teacher()
    prepare_tuning(model, TeacherConfig(asset="tiny", last_layers=1), 0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("layer.2." in n or n.startswith("head") for n in trained)
    with pytest.raises(ValueError, match="last_layers=9"):
        prepare_tuning(teacher(), TeacherConfig(asset="tiny", last_layers=9), 0)


def test_early_stopping_keeps_the_best():
    model = teacher()
    stop = EarlyStopping(model, FEW, patience=2)
    assert not stop(1)
    best = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight.mul_(-1)
    assert not stop(2)
    assert stop(3)
    again = EarlyStopping(model, FEW, patience=2)
    again.load_state_dict(*stop.state_dict())
    again.restore()
    assert torch.equal(best, model.head.weight)


@pytest.mark.parametrize("patience", [None, 3])
def test_training_the_words_that_occur_equals_training_all(monkeypatch, patience):
    """Early stopping scores dev texts, whose words may not occur in the labelled ones."""
    dev = Examples(["music and actor", "dark scene"], None, [1, 0])
    schedule = TUNING.model_copy(update={"weight_decay": 0.0})
    config = TeacherConfig(asset="tiny", train=schedule, patience=patience)
    few, whole = teacher(), teacher()
    tune(few, FEW, config, 3, dev)
    monkeypatch.setattr("core.distill.teachers.only_used_words", lambda *_: nullcontext())
    tune(whole, FEW, config, 3, dev)
    for name, parameter in whole.state_dict().items():
        torch.testing.assert_close(few.state_dict()[name], parameter, msg=name)


def test_words_that_do_not_occur_are_left_alone():
    model = teacher()
    table = model.encoder.backbone.get_input_embeddings()
    before = table.weight.detach().clone()
    tokens = model.tokenize(["good film"])
    with only_used_words(model.encoder.backbone, tokens):
        part = model.encoder.backbone.get_input_embeddings().weight
        assert part.shape == (5, before.shape[1])  # padding, start, end, two words
        with torch.no_grad():
            part.add_(1.0)
    assert model.encoder.backbone.get_input_embeddings() is table
    moved = (table.weight != before).any(1)
    assert set(np.flatnonzero(moved.numpy())) == {i for row in tokens.ids for i in row} | {0}


def test_label_faults():
    with pytest.raises(ValueError, match="classes \\[1\\] have no labelled example"):
        check_labels([0, 0], 2)
    with pytest.raises(ValueError, match="class indices 0 to 1"):
        check_labels([0, 2], 2)


def test_gate_hears_better_teachers_only():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=64)
    good, weak = labels.copy(), labels.copy()
    good[:4] ^= 1
    weak[4:24] ^= 1
    room = head_room(good, weak, labels, good, weak)
    assert room.heard
    assert room.weight == 1.0
    assert (room.teacher_only, room.student_only) == (20, 4)
    assert room.gain == pytest.approx(16 / 64)
    reverse = head_room(weak, good, labels, weak, good)
    assert not reverse.heard
    assert reverse.posterior == pytest.approx(1 - room.posterior)
    assert not head_room(good, good, labels, good, good).heard  # nothing to learn
    close = weak.copy()
    close[4:6] ^= 1
    close[0:1] ^= 1
    partly = head_room(close, weak, labels, close, weak, GateConfig(full_above=0.99))
    assert 0 < partly.weight < 1
    assert teacher_weights([room, reverse]).tolist() == [1.0, 0.0]
    assert teacher_weights([reverse]).tolist() == [0.0]
    with pytest.raises(ValueError, match="every held-out row"):
        head_room(good[:3], weak, labels, good, weak)


def test_transfer_set_hides_pool_labels_and_cuts_phrases():
    pool = Examples(["a good movie with music", "a bad and dull film"], None, [1, 0])
    cut = PhraseConfig(per_text=3, shortest=0.1, longest=0.5)
    data = transfer_set(FEW, pool, cut, seed=1)
    assert data.labels[:8].tolist() == tiny.LABELS
    assert set(data.labels[8:]) == {-1}
    assert len(data) == 8 + 2 + 6
    for phrase in data.texts[10:]:
        assert any(phrase in t for t in pool.texts)
        assert 1 <= len(phrase.split()) <= 3
    assert len(set(data.texts[10:])) == 6
    assert data.sha256 == transfer_set(FEW, pool, cut, seed=1).sha256
    assert len(transfer_set(None, pool).labelled) == 0
    assert cut_phrases(["one", ""], 5, PhraseConfig(), 0) == []
    assert set(cut_phrases(["Good, Bad"], 5, PhraseConfig(), 0)) == {"Good,", "Bad"}
    assert cut_phrases(["Good, Bad"], 5, PhraseConfig(), 0, without={"good"}) == ["Bad"]
    with pytest.raises(ValueError, match="give shortest <= longest"):
        PhraseConfig(shortest=0.5, longest=0.4)


def test_students_alone():
    for make in (
        students.linear_probe,
        lambda m, e: students.setfit(m, e, 1, TUNING.model_copy(update={"epochs": None, "steps": 20})),
    ):
        model = teacher()
        make(model, FEW)
        assert (students.answers(model, FEW, "float32").argmax(1) == tiny.LABELS).mean() >= 0.75
    model = teacher()
    students.random_head(model, 1)
    assert not model.normalize
    students.fine_tune(model, FEW, 1, TUNING)
    assert (students.answers(model, FEW, "float32").argmax(1) == tiny.LABELS).all()
    left, right, same = students.sample_pairs(tiny.LABELS, 40, 0)
    labels = np.array(tiny.LABELS)
    np.testing.assert_array_equal(labels[left] == labels[right], same)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_exported_students_answer_the_same(tmp_path, kind):
    model = teacher(kind)
    folder = export_student(model, tmp_path / kind, ["neg", "pos"])
    loaded = load_student(folder, device="cpu")
    np.testing.assert_allclose(
        students.answers(loaded.model, FEW, "float32"), students.answers(model, FEW, "float32"), atol=1e-4
    )
    answer = loaded("a good movie")
    assert answer[0]["label"] in ("neg", "pos")
    assert 0.5 <= answer[0]["score"] <= 1
    if kind == "encoder":
        packaged = TextClassifier(folder).predict(tiny.TEXTS)
        assert [p.label for p in packaged] == [a["label"] for a in loaded(tiny.TEXTS)]
    with pytest.raises(StateError, match="holds no student"):
        load_student(tmp_path)


def test_onnx_gives_the_same_logits(tmp_path):
    model = teacher()
    with pytest.raises(ValueError, match="sentence-encoder"):
        export_onnx(teacher("causal"), tmp_path / "student.onnx")
    runtime = pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("onnx") is None:
        with pytest.raises(ValueError, match="needs the package onnx"):
            export_onnx(model, tmp_path / "student.onnx")
        pytest.skip("the package onnx is not installed")
    path = export_onnx(model, tmp_path / "student.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens = model.tokenize(tiny.TEXTS)
    batch = {n: t.numpy() for n, t in tokens.batch(np.arange(8)).items()}
    logits = session.run(["logits"], batch)[0]
    np.testing.assert_allclose(logits, students.answers(model, FEW, "float32"), atol=1e-3)


def test_every_task_of_the_section_has_a_usable_prompt():
    from core.data.tasks import built_in, load_task

    classified = [load_task(t) for t in built_in() if load_task(t).kind in ("single", "pair")]
    assert {t.name for t in classified} > set(phrases())
    for task in classified:
        prompt = task_prompt(task)
        assert len(prompt.words) == len(task.labels)
        assert len({tuple(p) for p in prompt.phrases}) == len(task.labels)


def test_methods_are_consistent():
    assert METHODS["prompt_distiller"].gate
    half = weighted(METHODS["vanilla_kd"].distill, 0.5)
    assert {s.name: s.weight for s in half.losses} == {"task_ce": 1.0, "kd_tuned": 0.5}
    assert not METHODS["unlabelled_only"].labels
