"""Students of one structure and one start can be merged; anything else is refused before, with the reason."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.chain.start import CARD, load_start
from core.chain.students import check_method, check_students, distil_student
from core.merge.experts import CARD as EXPERT
from core.merge.experts import load_expert
from core.merge.task_vectors import task_vectors
from core.models.load import load_encoder
from core.state import Cache
from tests import tiny_chain

FIRST, OTHER, WIDE = "2x32 2x32 -", "2x32 - 2x32", "2x16 2x16 2x16"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Base, tasks, two starts of one structure (other warm-up), one of another, and the students of all three."""
    root = tmp_path_factory.mktemp("chain")
    patch = pytest.MonkeyPatch()
    patch.setenv("TRANSFEROPT_HOME", str(root / "home"))
    base, files = tiny_chain.base_folder(root / "base"), tiny_chain.task_files(root / "tasks")
    starts = {
        "first": tiny_chain.start(base, files, FIRST, root / "first"),
        "longer": tiny_chain.start(base, files, FIRST, root / "longer", examples=128),
        "other": tiny_chain.start(base, files, OTHER, root / "other"),
    }
    folders, budgets = {}, {}
    for name, start in starts.items():
        for task, study in tiny_chain.studies(base, files).items():
            folder = root / f"{name}-{task}"
            folder.mkdir()
            budgets[name, task] = distil_student(study, "vanilla_kd", start, folder, 16)
            folders[name, task] = folder
    yield {"root": root, "base": base, "files": files, "starts": starts, "folders": folders, "budgets": budgets}
    patch.undo()


def of(world, *names):
    return [world["folders"][n] for n in names]


def test_students_of_one_start_are_accepted_and_merge(world):
    start = world["starts"]["first"]
    students = check_students(start, of(world, ("first", "mood"), ("first", "light")))
    assert [s.task for s in students] == ["mood", "light"]
    vectors = task_vectors(start.folder, {s.task: s.folder for s in students}, Cache(world["root"] / "cache"))
    assert vectors.layers == 2
    assert not any("embeddings" in t.name for t in vectors.tensors)  # frozen, so nothing of them is to merge


def test_students_learn_and_their_labels_are_counted(world):
    budget = world["budgets"]["first", "mood"].counts
    assert budget["train_labels"] == 16
    assert budget["train_steps"] >= 12
    student = load_expert(world["folders"]["first", "mood"])
    encoder = load_encoder(student.folder, device="cpu")
    test = student.definition.splits().test
    weight, bias = student.head()
    answers = (encoder.embed(test.texts) @ weight.T + bias).argmax(1)
    assert (answers == np.asarray(test.labels)).mean() > 0.6
    assert np.isfinite(student.head(probe=True)[0]).all()


def test_other_structures_are_refused(world):
    with pytest.raises(ValueError, match=f"different structures cannot be merged: mood: {FIRST}; light: {OTHER}"):
        check_students(world["starts"]["first"], of(world, ("first", "mood"), ("other", "light")))


def test_other_cut_weights_are_refused(world):
    with pytest.raises(ValueError, match=r"different cut weights cannot be merged: mood: .*; light: .*one start"):
        check_students(world["starts"]["first"], of(world, ("first", "mood"), ("longer", "light")))
    with pytest.raises(ValueError, match="different cut weights"):  # both of one start, but not of the one merged on
        check_students(world["starts"]["first"], of(world, ("longer", "mood"), ("longer", "light")))


def test_two_of_one_task_and_a_single_one_are_refused(world):
    first = world["starts"]["first"]
    with pytest.raises(ValueError, match="two experts of task 'mood'"):
        check_students(first, of(world, ("first", "mood"), ("first", "mood")))
    with pytest.raises(ValueError, match="at least two students, got 1"):
        check_students(first, of(world, ("first", "mood")))


def test_other_tensors_are_refused(world, tmp_path):
    changed = shutil.copytree(world["folders"]["first", "light"], tmp_path / "light")
    tensors = load_file(changed / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({**tensors, name: torch.zeros(16, 8)}, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"student of 'light' has other tensors .*layer\.1\.output.*\[16, 8\]"):
        check_students(world["starts"]["first"], [world["folders"]["first", "mood"], changed])


def test_an_expert_that_is_no_student_is_refused(world, tmp_path):
    plain = shutil.copytree(world["folders"]["first", "light"], tmp_path / "light")
    card = json.loads((plain / EXPERT).read_text())
    (plain / EXPERT).write_text(json.dumps({k: v for k, v in card.items() if k != "structure"}))
    with pytest.raises(ValueError, match="no student of a cut start"):
        check_students(world["starts"]["first"], [world["folders"]["first", "mood"], plain])


def test_a_start_is_what_its_card_says(world, tmp_path):
    start = world["starts"]["first"]
    assert load_start(start.folder) == start
    again = tiny_chain.start(world["base"], world["files"], FIRST, tmp_path / "again")
    assert again.sha256 == start.sha256 != world["starts"]["longer"].sha256
    card = json.loads((start.folder / CARD).read_text())
    assert card["agreement"]["warmed up"] > card["agreement"]["cut"]
    (tmp_path / "again" / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="are not those of"):
        load_start(tmp_path / "again")
    with pytest.raises(ValueError, match="holds no cut start"):
        load_start(world["base"])


def test_a_start_keeps_heads_and_one_width(world, tmp_path):
    with pytest.raises(ValueError, match="keeps all heads and one width"):
        tiny_chain.start(world["base"], world["files"], "2x32 2x16 -", tmp_path / "mixed")


def test_a_start_of_narrow_layers_learns_too(world, tmp_path):
    start = tiny_chain.start(world["base"], world["files"], WIDE, tmp_path / "narrow")
    assert load_encoder(start.folder, device="cpu").backbone.config.intermediate_size == 16


def test_only_distillations_are_taken():
    check_method("prompt_distiller")
    with pytest.raises(ValueError, match="unknown distillation 'vanila_kd', did you mean 'vanilla_kd'"):
        check_method("vanila_kd")
    with pytest.raises(ValueError, match="unknown distillation 'label_words'"):
        check_method("label_words")
