"""Tuning is counted whether or not its weights were there, and a teacher that is there is not loaded."""

import pytest

from core.distill import teachers
from core.distill.gate import GateConfig
from core.distill.students import student_of
from core.distill.study import Study, StudyConfig
from core.distill.teachers import teacher_of
from core.models.train import TrainConfig
from core.state import Cache
from core.transfer.budget import Budget
from tasks.stage import Output
from tasks.tune_teacher import TuneConfig, tune_teacher
from tests import tiny_models as tiny

TASK = """kind: single
source: {path: rows.csv}
labels: ['0', '1']
metric: accuracy
label_words: [bad, good]
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "".join(f"a {('bad', 'good')[i % 2]} movie number {i},{i % 2}\n" for i in range(60))
    )
    (tmp_path / "task.yaml").write_text(TASK)
    encoder = tiny.encoder(layers=1)
    encoder.backbone.save_pretrained(tmp_path / "encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "encoder")
    teacher = teacher_of(str(tmp_path / "encoder"))
    schedule = TrainConfig(lr=1e-3, epochs=2, batch_size=3)
    return StudyConfig(
        task=str(tmp_path / "task.yaml"),
        teacher=teacher.model_copy(update={"train": schedule}),
        student=student_of(str(tmp_path / "encoder")),
        k=4,
        n=2,
        test_rows=8,
        steps=5,
    )


def test_a_cached_teacher_costs_what_its_tuning_took_and_is_not_loaded(study, home, tmp_path, monkeypatch):
    counted = Budget("train_steps")
    Study(study, Cache(tmp_path / "elsewhere")).teacher("tuned", counted)
    assert counted.counts == {"train_steps": 6, "train_examples": 16, "train_labels": 8}

    budgets = []
    for name in ("first", "again"):
        out = Output(tmp_path / name)
        out.folder.mkdir()
        tune_teacher.body(out, TuneConfig(study=study), prompts=None, teacher=None)
        budgets.append(out.facts["budget"])
        monkeypatch.setattr(teachers, "build", lambda *_, **__: pytest.fail("the teacher was loaded"))
    assert budgets == [counted.counts, counted.counts]


def test_what_tuning_does_not_read_is_not_in_its_key(study):
    key = TuneConfig(study=study)
    other = {"steps": 7, "student": teacher_of(study.student.asset), "test_rows": 9, "gate": GateConfig(cross_fit=True)}
    for name, value in other.items():
        assert TuneConfig(study=study.model_copy(update={name: value})) == key
    for name, value in {"seed": 21, "k": 3, "splits": "lmbff", "task": "other"}.items():
        assert TuneConfig(study=study.model_copy(update={name: value})) != key
