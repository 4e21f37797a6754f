"""Every kind of package is described without its model, opened by one call, and answers alike."""

import subprocess
import sys

import numpy as np
import pytest

from core.distill import export
from core.distill.export import export_student
from core.merge import language_package
from core.merge.language_package import Asked, describe
from core.models.classifier import CARD, Head, save
from core.packages import CARDS, described, open_package
from tests import tiny_language
from tests.core.distill.test_pieces import teacher
from tests.tiny_experts import base_folder

TEXTS = ["a good movie", "a bad plot"]


@pytest.fixture
def classifier(tmp_path):
    rng = np.random.default_rng(0)
    heads = {t: Head(rng.normal(size=(2, 16)).astype("f4"), np.zeros(2, "f4"), ("no", "yes"), p) for t, p in PAIRS}
    save(tmp_path / "classifier", base_folder(tmp_path / "base"), heads, 32, {"method": "average"})
    return tmp_path / "classifier"


PAIRS = (("one", False), ("two", True))


def test_a_classifier_is_asked_by_task(classifier):
    assert described(classifier).pairs == dict(PAIRS)
    opened = open_package(classifier)
    assert {a.label for a in opened.predict(TEXTS, task="one")} <= {"no", "yes"}
    assert len(opened.predict(TEXTS, TEXTS, task="two")) == 2


def test_a_merged_language_model_is_asked_by_task(tmp_path):
    folder = tmp_path / "language"
    tiny_language.base_folder(folder / "model")
    asked = Asked(template="{text} It was", labels=("no", "yes"), words=(" bad", " good"))
    describe(folder, {"mood": asked, "pairs": asked.model_copy(update={"pair": True})}, {"method": "average"})
    assert described(folder).pairs == {"mood": False, "pairs": True}
    assert {a.label for a in open_package(folder).predict(TEXTS, task="mood")} <= {"no", "yes"}


@pytest.mark.parametrize("kind", ["causal", "masked", "encoder"])
def test_a_student_needs_no_task(tmp_path, kind):
    folder = export_student(teacher(kind), tmp_path, ["neg", "pos"])
    (task,) = described(folder).pairs
    opened = open_package(folder)
    assert opened.predict(TEXTS) == opened.predict(TEXTS, task=task)
    with pytest.raises(ValueError, match="unknown task 'other'"):
        opened.predict(TEXTS, task="other")


def test_the_cards_are_those_that_the_packagers_write():
    assert set(CARDS) == {CARD, language_package.CARD, export.STUDENT}


def test_what_delivers_to_mlflow_needs_no_torch():
    program = "import sys, tasks.serving; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_folder_without_a_card_is_no_package(tmp_path):
    with pytest.raises(ValueError, match=r"no packaged model \(none of classifier.json, language.json, student.json\)"):
        open_package(tmp_path)
