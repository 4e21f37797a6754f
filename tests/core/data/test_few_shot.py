"""The few-shot protocol: K per class, disjoint after folding, seeded; the published files with leaks exchanged."""

import numpy as np
import pandas as pd
import pytest
import yaml

from core.data.examples import TaskError
from core.data.few_shot import PUBLISHED, SEEDS, UNLABELLED, few_shot, lmbff
from core.data.tasks import load_task


@pytest.fixture
def task(tmp_path):
    """Three uneven classes; every fifth text occurs again in other writing."""
    rows = [(f"some words {i} {c}", c) for c, n in (("x", 90), ("y", 60), ("z", 40)) for i in range(n)]
    rows += [(t.upper() + "!!", c) for t, c in rows[::5]]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "t.csv", index=False)
    content = {"kind": "single", "source": {"path": "t.csv"}, "labels": ["x", "y", "z"], "metric": "accuracy"}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    return load_task(tmp_path / "t.yaml")


def disjoint(few):
    keys = [few.train.folded(), few.dev.folded(), few.pool.folded(), few.test.folded()]
    assert all(len(set(k)) == len(k) for k in keys[:3])
    sets = [set(k) for k in keys]
    assert not any(sets[i] & sets[j] for i in range(4) for j in range(i))


@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("n", [0, 2, 100])
def test_sizes_and_disjointness(task, k, n):
    few = few_shot(task, k, n, seed=13)
    assert np.bincount(few.train.labels).tolist() == [k] * 3
    assert np.bincount(few.dev.labels).tolist() == [k] * 3
    free = len(set(task.splits().train.folded())) - 6 * k
    assert len(few.pool) == min(n * 3 * k, free)
    assert set(few.pool.labels) <= {UNLABELLED}
    assert len(few.pool_gold) == len(few.pool)
    assert few.test.sha256 == task.splits().test.sha256
    disjoint(few)


def test_seeds_decide_and_the_global_rng_does_not(task):
    np.random.seed(1)
    one = few_shot(task, 4, 2, seed=21)
    np.random.seed(2)
    assert few_shot(task, 4, 2, seed=21).sha256 == one.sha256
    drawn = [few_shot(task, 4, 2, seed=s).train.sha256 for s in SEEDS]
    assert len(set(drawn)) == len(SEEDS)
    assert few_shot(task, 4, 5, seed=21).train.sha256 == one.train.sha256  # the pool does not move the labels


def test_too_few_examples_and_wrong_kinds_are_refused(task):
    with pytest.raises(TaskError, match=r"class '[yz]' has \d+ distinct train texts outside the test, 60 are needed"):
        few_shot(task, 30)
    with pytest.raises(TaskError, match="k >= 1"):
        few_shot(task, 0)
    with pytest.raises(TaskError, match="without classes"):
        few_shot(load_task("diabetes"))


def test_published_files_lose_leaks_and_repeats(task, tmp_path):
    named = task.model_copy(update={"name": "subj", "labels": ("x", "y", "z")})
    place = tmp_path / "files" / "subj" / "2-13"
    place.mkdir(parents=True)
    splits = task.splits()
    leak = splits.test.texts[splits.test.labels.index(0)]
    own = [splits.train.texts[i] for i in np.flatnonzero(np.array(splits.train.labels) == 1)[:3]]
    (place / "train.csv").write_text(f'0,"{leak}"\n0,fresh words\n1,"{own[0]}"\n1,"{own[0].upper()}"\n2,\n2,new z\n')
    (place / "dev.csv").write_text(f'0,a\n0,b\n1,"{own[0]}"\n1,"{own[1]}"\n2,c\n2,d\n')
    few = lmbff(named, 13, n=3, k=2, folder=tmp_path / "files")
    assert few.replaced == {"train": {"in test": 1, "repeated": 1, "empty": 1}, "dev": {"repeated": 1}}
    assert few.train.labels == few.dev.labels == [0, 0, 1, 1, 2, 2]
    assert few.train.texts[1] == "fresh words"
    assert len(few.pool) == 18
    disjoint(few)
    (place / "dev.csv").write_text("9,a\n")
    with pytest.raises(TaskError, match=r"labels \['9'\]"):
        lmbff(named, 13, k=2, folder=tmp_path / "files")
    with pytest.raises(TaskError, match="no published few-shot files"):
        lmbff(named, 14, k=2, folder=tmp_path / "files")


def test_what_misses_of_the_published_files_is_said(task, tmp_path, monkeypatch):
    named = task.model_copy(update={"name": "subj"})
    monkeypatch.setenv("TRANSFEROPT_DATA", str(tmp_path))
    root = tmp_path / "files"

    def refused(message, folder=root, task=named):
        with pytest.raises(TaskError) as error:
            lmbff(task, 13, k=2, folder=folder)
        assert message in str(error.value)

    refused("LM-BFF has files of cola, cr,", task=task)
    refused(f"no text/_lmbff_kshot in a local data folder (TRANSFEROPT_DATA: {tmp_path}); put there", folder=None)
    refused("files is no folder")
    (root / "Subj").mkdir(parents=True)
    refused("has no folder 'subj', did you mean 'Subj'")
    place = root / "subj" / "2-13"
    (root / "subj" / "16-13").mkdir(parents=True)
    refused("with k=2 and seed=13: no folder")
    refused("it has (k-seed) 16-13; take one of them, or draw the few with `splits: drawn`")
    place.mkdir()
    refused("holds no train.tsv or train.csv; copy LM-BFF's train file")
    (place / "train.csv").write_text("0,a\n7,b\n")
    (place / "dev.csv").write_text("0,a\n")
    refused("holds labels ['7'] in column 0, which are not those of task subj; allowed: 0 (x), 1 (y), 2 (z)")
    (place / "train.csv").write_text("0\n")
    refused("row 1 has 1 cells, LM-BFF's files of subj have at least 2")
    (place / "train.csv").write_text("")
    refused("train.csv (No columns to parse from file)")
    (place / "train.csv").write_text("0,\n" * 200)
    refused("row 64 of the published train file is unusable (empty), and train has no further row of class 0")


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_real_files_agree_with_our_labels(shared_data, name):
    task = load_task(name)
    few = lmbff(task, 42)
    disjoint(few)
    k = 16 * len(task.labels)
    assert (len(few.train), len(few.dev)) == (k, k)
    splits = task.splits()
    ours = dict(zip(splits.train.folded(), splits.train.labels))
    read = [pair for part in (few.train, few.dev) for pair in zip(part.folded(), part.labels)]
    seen = [(key, label) for key, label in read if key in ours]
    agree = sum(ours[key] == label for key, label in seen)
    assert agree >= 0.98 * len(seen)
