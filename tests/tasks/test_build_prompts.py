"""What a distillation is refused for before its teacher is tuned, on tiny models and a task of one csv."""

import json
from dataclasses import replace

import pytest

from core.data.few_shot import few_shot
from core.distill.students import student_of
from core.distill.study import StudyConfig
from core.distill.teachers import teacher_of
from tasks.build_prompts import EXCHANGED, PromptsConfig, build_prompts, exchanged_words
from tasks.stage import METRICS, Artifact, Output
from tests import tiny_models as tiny

ROWS = "text,label\n" + "".join(f"a {('good', 'bad')[i % 2]} movie number {i},{i % 2}\n" for i in range(60))
TASK = """kind: single
source: {path: rows.csv}
labels: ['0', '1']
metric: accuracy
template: "{text} It was {mask} ."
causal_template: "{text} It was"
label_words: [bad, good]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the task, an encoder, a masked and a causal language model."""
    place = tmp_path_factory.mktemp("prompts")
    (place / "rows.csv").write_text(ROWS)
    (place / "task.yaml").write_text(TASK)
    encoder = tiny.encoder(layers=1)
    encoder.backbone.save_pretrained(place / "encoder")
    encoder.tokenizer.save_pretrained(place / "encoder")
    for kind in ("masked", "causal"):
        lm = getattr(tiny, kind)(layers=1)
        lm.model.save_pretrained(place / kind)
        lm.tokenizer.save_pretrained(place / kind)
    return place


@pytest.fixture
def build(place, tmp_path):
    """Run the stage's body; ``task`` is added to the task's lines or replaces some."""

    def run(teacher="encoder", student="encoder", methods=("label_words",), task=("", ""), **study):
        path = place / "task.yaml"
        if any(task):
            path = place / f"{abs(hash(task))}.yaml"
            path.write_text(TASK.replace(*task))
        config = StudyConfig(
            task=str(path),
            teacher=teacher_of(str(place / teacher)),
            student=student_of(str(place / student)),
            **{"k": 4, "n": 2, "test_rows": 8, **study},
        )
        build_prompts.body(Output(tmp_path), PromptsConfig(study=config, methods=methods), data=None)

    return run


@pytest.mark.parametrize("student", ["encoder", "masked", "causal"])
def test_what_can_work_is_written_down(build, student, tmp_path):
    build(student=student, methods=("label_words", "vanilla_kd"))
    assert (tmp_path / "prompts.json").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0.01}, r"n=0.01 and k=4 leave no unlabelled text .* has 42; give a larger n"),
        ({"student": "masked", "methods": ("setfit",)}, "method setfit needs a sentence encoder as student"),
        ({"methods": ("pkd",)}, "method pkd does not fit these models"),
        ({"teacher": "causal", "task": ("causal_template", "# c")}, "no causal_template, which the teacher .*causal"),
        ({"student": "masked", "task": ('"{text} It', '"It')}, r"no \{text\}: the student .*masked"),
        ({"student": "masked", "task": ("[bad, good]", "[worst, good]")}, "student .* cannot .*'worst' of label 0"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_before_a_teacher_is_tuned(build, values, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        build(**values)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_problem_without_student_is_not_tried_on_one(build, tmp_path):
    build(student="masked", methods=(), task=("[bad, good]", "[worst, good]"))
    assert (tmp_path / "prompts.json").is_file()


def test_rows_of_published_files_that_were_exchanged_are_counted_and_told(build, monkeypatch, tmp_path):
    def published(task, **sizes):
        return replace(few_shot(task, **sizes), replaced={"train": {"in test": 1, "repeated": 2}, "dev": {}})

    monkeypatch.setattr("core.distill.study.lmbff", published)
    build(splits="lmbff")
    metrics = json.loads((tmp_path / METRICS).read_text())
    assert (metrics["exchanged.train"], metrics["exchanged.dev"]) == (3, 0)
    made = Artifact(name="build-prompts", path=str(tmp_path), sha256="")
    assert exchanged_words(made) == {EXCHANGED: "train: 1 in test, 2 repeated; dev: none"}
    build()
    assert exchanged_words(made) == {}
