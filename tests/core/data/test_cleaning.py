"""Faults: found where they were planted, removed by choice, and the change is recorded."""

import numpy as np
import pytest

from core.data.cleaning import clean, find_faults, outliers
from core.data.examples import Examples, Splits


def texts(*rows):
    return Examples([t for t, _ in rows], None, [label for _, label in rows])


@pytest.fixture
def splits():
    train = [(f"an ordinary sentence number {i}", i % 2) for i in range(20)]
    train += [("An ordinary  sentence NUMBER 3", 1)]  # 20: duplicate of 3
    train += [("an ordinary sentence number 4", 1)]  # 21: conflicts with 4
    train += [(" ?? ", 0)]  # not empty: marks stay; 22
    train += [("word " * 400, 0)]  # 23: outlier
    train += [("seen in test", 1), ("seen in validation", 0)]  # 24, 25: leaks
    validation = [("seen in validation", 0), ("mine", 1), ("Seen in test too", 0)]
    test = [("seen in TEST", 1), ("seen in test too", 0), ("other", 1)]
    return Splits(texts(*train), texts(*validation), texts(*test))


def test_planted_faults_are_found(splits):
    found = find_faults(splits)
    assert found["train"]["duplicates"] == [20]
    assert found["train"]["conflicting"] == [4, 21]
    assert found["train"]["outliers"] == [23]
    assert found["train"]["leaks"] == [24, 25]
    assert found["validation"]["leaks"] == [2]
    assert found["test"] == {"empty": [], "duplicates": [], "conflicting": [], "outliers": [], "leaks": []}


def test_only_what_is_chosen_is_removed_and_recorded(splits):
    cleaned, change = clean(splits, ["duplicates"])
    assert len(cleaned.train) == len(splits.train) - 1
    assert change.counts["train"] == {"duplicates": 1}
    cleaned, change = clean(splits, ["duplicates", "conflicting", "outliers", "leaks"])
    after = find_faults(cleaned)
    for part in ("train", "validation"):
        assert not any(after[part][f] for f in ("duplicates", "conflicting", "leaks"))
    assert cleaned.test is splits.test
    assert change.before == {"train": 26, "validation": 3, "test": 3}
    assert change.after["validation"] == 2
    assert change.sha256_before == splits.sha256
    assert change.sha256_after == cleaned.sha256
    assert change.sha256_before["train"] != change.sha256_after["train"]
    again, _ = clean(splits, ["duplicates", "conflicting", "outliers", "leaks"])
    assert again.sha256 == cleaned.sha256


def test_wrong_choices_are_refused(splits):
    with pytest.raises(ValueError, match="unknown fault 'duplicate', did you mean 'duplicates'"):
        clean(splits, ["duplicate"])
    with pytest.raises(ValueError, match="unknown part 'dev'"):
        clean(splits, ["empty"], parts=["dev"])
    same = Splits(texts(("a", 0), ("a", 1)), splits.validation, splits.test)
    with pytest.raises(ValueError, match="would leave no row in train"):
        clean(same, ["conflicting"])


def test_features_targets_and_several_references():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 3)).astype(np.float32)
    table[7, 1] = 40
    targets = [float(v) for v in rng.normal(size=200)]
    targets[11] = -60.0
    assert outliers(Examples([], None, targets, table)) == [7, 11]
    constant = Examples([], None, [0] * 5, np.ones((5, 2), np.float32))
    assert outliers(constant) == []
    missing = Examples([], None, [0, 1], np.array([[1, np.nan], [1, 2]], np.float32))
    whole = Splits(missing, constant, constant)
    assert find_faults(whole)["train"]["empty"] == [0]
    answers = Examples(["q", "q", "Q"], None, ["one", "two", "one"])
    assert find_faults(Splits(answers, answers, answers))["train"]["conflicting"] == []
    assert find_faults(Splits(answers, answers, answers))["train"]["duplicates"] == [2]


def test_signs_may_be_all_that_tells_two_texts_apart():
    rows = ["great 👍", "great 👎", "C++", "C#", "3 - 2", "3 + 2", "काम", "कौम", "great :)", "great :("]
    part = texts(*[(row, i % 2) for i, row in enumerate(rows)])
    found = find_faults(Splits(part, texts(("x", 0)), texts(("y", 0))))["train"]
    assert not found["duplicates"]
    assert not found["conflicting"]


def test_two_ratings_of_a_text_are_measurements_and_no_conflict():
    part = texts(("a pair", 1.0), ("a pair", 2.5), ("A pair", 1.0))
    found = find_faults(Splits(part, texts(("x", 0.0)), texts(("y", 0.0))))["train"]
    assert (found["duplicates"], found["conflicting"]) == ([2], [])
