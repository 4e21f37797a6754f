"""Task files: every source and kind, cuts without leaks, and clear errors."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from core.data.assets import AssetError, table
from core.data.examples import TaskError
from core.data.tasks import BUILT_IN, TASKS, built_in, load_task, parse_task, register_tasks

ROWS = pd.DataFrame(
    {
        "text": [f"the {w} item number {i}" for i, w in enumerate(["good", "bad"] * 30)],
        "mood": ["up", "down"] * 30,
        "value": [i / 7 for i in range(60)],
        "who": [f"person {i // 6}" for i in range(60)],
    }
)
BASE = {"kind": "single", "fields": {"text": "text", "label": "mood"}, "labels": ["down", "up"], "metric": "accuracy"}


def write(folder, name="task", file="rows.csv", **changes):
    content = {**BASE, "source": {"path": file}, **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.fixture
def folder(tmp_path):
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "csv.bz2"])
def test_every_format_gives_the_same_examples(folder, suffix):
    file = folder / f"other.{suffix}"
    if suffix == "jsonl":
        ROWS.to_json(file, orient="records", lines=True)
    elif suffix == "json":
        file.write_text(json.dumps(ROWS.to_dict("records")))
    elif suffix == "parquet":
        ROWS.to_parquet(file)
    else:
        ROWS.to_csv(file, index=False, sep="\t" if suffix == "tsv" else ",")
    splits = load_task(write(folder, "other", file.name)).splits()
    assert splits.sha256 == load_task(write(folder)).splits().sha256
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (42, 6, 12)


def test_cuts_are_proportional_disjoint_and_move_with_the_seed(folder):
    task = load_task(write(folder, splits={"validation": 0.2, "test": 0.3}))
    splits = task.splits()
    parts = [splits.train, splits.validation, splits.test]
    assert [len(p) for p in parts] == [30, 12, 18]
    assert [sum(p.labels) for p in parts] == [15, 6, 9]
    keys = [set(p.folded()) for p in parts]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    assert task.splits(1).sha256 != splits.sha256
    assert task.splits(0) is splits


def test_equal_texts_and_groups_stay_together(folder):
    doubled = pd.concat([ROWS, ROWS.assign(text=ROWS.text.str.upper() + " !")])
    doubled.to_csv(folder / "twice.csv", index=False)
    splits = load_task(write(folder, file="twice.csv")).splits()
    assert not set(splits.train.folded()) & set(splits.test.folded())
    assert len(splits.train) == 84
    grouped = load_task(write(folder, "grouped", splits={"test": 0.3, "validation": 0.2, "by": "who"})).splits()
    who = dict(zip(ROWS.text, ROWS.who))
    people = [{who[t] for t in p.texts} for p in (grouped.train, grouped.validation, grouped.test)]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]


def test_groups_that_share_a_text_are_not_parted(folder):
    shared = ROWS.assign(text=[f"text {i}" for i in range(60)])
    shared.loc[5, "text"] = shared.loc[59, "text"] = "told by the first and by the last"
    shared.to_csv(folder / "rows.csv", index=False)
    for seed in range(5):
        splits = load_task(write(folder, splits={"test": 0.3, "validation": 0.2, "by": "who"})).splits(seed)
        parts = [set(p.folded()) for p in (splits.train, splits.validation, splits.test)]
        first_and_last = {f"text {i}" for i in (0, 1, 58)}
        assert any(first_and_last <= part for part in parts)


def test_texts_equal_after_the_cut_stay_together(folder):
    ROWS.assign(text=[f"begin {i % 20} differs {i}" for i in range(60)]).to_csv(folder / "rows.csv", index=False)
    splits = load_task(write(folder, max_words=2)).splits()
    assert not set(splits.train.folded()) & set(splits.test.folded())


def test_leaks_are_removed_by_choice_also_behind_tags_and_cuts(tmp_path):
    parts = {
        "train": [f"train text {i} goes on" for i in range(8)]
        + ["same<br /><br />text goes on here", "of VALIDATION!"],
        "validation": ["of validation", "my own", "in test too"],
        "test": ["sametext goes on here", "In test too.", "same text goes on, here", "own test"],
    }
    for name, texts in parts.items():
        rows = pd.DataFrame({"text": texts, "mood": ["up", "down"] * (len(texts) // 2) + ["up"] * (len(texts) % 2)})
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    kept = load_task(write(tmp_path, "a", ".", splits={"test": "test"})).splits()
    assert [len(p) for p in (kept.train, kept.validation, kept.test)] == [10, 3, 4]
    for changes in ({}, {"max_words": 2}):
        clean = {"splits": {"leaks": "remove"}, "normalise": ["html", "spaces"], **changes}
        splits = load_task(write(tmp_path, "b", ".", **clean)).splits()
        assert len(splits.test) == 4
        assert splits.dropped["train"]["in a later split"] >= 2
        assert splits.dropped["validation"] == {"in a later split": 1}
        assert not any(t.startswith("same") for t in splits.train.texts)
    with pytest.raises(TaskError, match=r"splits.leaks: Input should be 'keep' or 'remove'"):
        load_task(write(tmp_path, "c", ".", splits={"leaks": "drop"}))
    with pytest.raises(ValueError, match="did you mean 'html'"):
        load_task(write(tmp_path, "d", ".", normalise=["htm"])).splits()


def test_named_splits_and_a_validation_set_as_test(tmp_path):
    for name, rows in (("train", ROWS[:40]), ("validation", ROWS[40:])):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    splits = load_task(write(tmp_path, file=".", splits={"test": "validation"})).splits()
    assert splits.test.texts == ROWS.text[40:].tolist()
    assert len(splits.train) + len(splits.validation) == 40
    with pytest.raises(TaskError, match="names split 'validatoin', did you mean 'validation'"):
        load_task(write(tmp_path, "b", ".", splits={"test": "validatoin"})).splits()
    with pytest.raises(TaskError, match="two parts name the same split"):
        load_task(write(tmp_path, "c", ".", splits={"test": "validation", "validation": "validation"})).splits()


def test_empty_and_unlabelled_rows_are_left_out_and_counted(folder):
    extra = pd.DataFrame({"text": ["", "  ", "fine", "fine too"], "mood": ["up", "down", "", "-1"]})
    pd.concat([ROWS, extra]).to_csv(folder / "rows.csv", index=False)
    splits = load_task(write(folder)).splits()
    total = {}
    for counts in splits.dropped.values():
        for reason, n in counts.items():
            total[reason] = total.get(reason, 0) + n
    assert total == {"empty": 2, "without label": 2}
    assert sum(len(p) for p in (splits.train, splits.validation, splits.test)) == 60


def test_labels_by_index_by_name_and_by_values(folder):
    ROWS.assign(n=[1, 0] * 30, raw=["+", "-"] * 30).to_csv(folder / "rows.csv", index=False)
    named = load_task(write(folder)).splits().train.labels
    by_index = load_task(write(folder, "i", fields={"text": "text", "label": "n"})).splits().train.labels
    mapped = load_task(
        write(folder, "v", fields={"text": "text", "label": "raw"}, values={"+": "up", "-": "down"})
    ).splits()
    assert named == by_index == mapped.train.labels
    with pytest.raises(TaskError, match=r"column 'raw' holds \['\+', '-'\].*Allowed: .*up"):
        load_task(write(folder, "w", fields={"text": "text", "label": "raw"})).splits()


def test_regression_generation_pairs_and_words(folder):
    fields = {"text": "text", "pair": "who", "label": "value"}
    splits = load_task(write(folder, kind="regression", labels=None, metric="pearson", fields=fields)).splits()
    assert all(isinstance(v, float) for v in splits.train.labels)
    assert splits.train.pairs[0].startswith("person")
    fields = {"text": "text", "label": "who"}
    answers = load_task(write(folder, "g", kind="generation", labels=None, metric="rouge_l", fields=fields)).splits()
    assert answers.train.labels[0].startswith("person")
    fields = {"text": "who", "label": "mood"}
    ROWS.assign(who=[f"{i} two three four" for i in range(60)]).to_csv(folder / "rows.csv", index=False)
    words = load_task(write(folder, "m", max_words=2, fields=fields)).splits().train.texts
    assert {t.split()[1:] == ["two"] for t in words} == {True}
    ROWS.assign(value=["much"] * 60).to_csv(folder / "rows.csv", index=False)  # read again: the file has changed
    bad = {"kind": "regression", "labels": None, "metric": "r2", "fields": {"text": "text", "label": "value"}}
    with pytest.raises(TaskError, match="'value' holds 'much', not a finite number"):
        load_task(write(folder, "n", **bad)).splits()


def test_tables_and_images_become_arrays(folder):
    from PIL import Image

    table_task = {"kind": "table", "fields": {"label": "mood", "features": ["value"]}}
    splits = load_task(write(folder, **table_task)).splits()
    assert splits.train.arrays.shape == (42, 1)
    assert splits.train.arrays.dtype == np.float32
    with pytest.raises(TaskError, match="feature column 'who' holds values that are no finite numbers"):
        load_task(write(folder, "t", kind="table", fields={"label": "mood", "features": ["who"]})).splits()
    for mood in ("up", "down"):
        (folder / "pictures" / mood).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20, 10), (i * 20, 0, 200 if mood == "up" else 0)).save(
                folder / f"pictures/{mood}/{i}.png"
            )
    image = {"kind": "image", "fields": {"label": "label"}, "image_shape": [3, 8, 8]}
    splits = load_task(write(folder, "p", "pictures", **image)).splits()
    assert splits.train.arrays.shape == (14, 3, 8, 8)
    assert splits.train.arrays.dtype == np.uint8
    blue = splits.test.arrays[:, 2].reshape(len(splits.test), -1).mean(1)
    assert [b > 100 for b in blue] == [label == 1 for label in splits.test.labels]
    (folder / "pictures/up/0.png").write_bytes(b"no image")
    with pytest.raises(TaskError, match=r"cannot read image .*0\.png"):
        load_task(write(folder, "q", "pictures", **image)).splits()


WRONG = [
    ({"kindd": "single"}, "unknown key 'kindd', did you mean 'kind'"),
    ({"kind": "singel"}, "kind: Input should be 'single', 'pair'"),
    ({"labels": ["one"]}, "at least two labels"),
    ({"labels": ["a", "a"]}, "labels must differ"),
    ({"labels": [True, False]}, "put them in quotes"),
    ({"label_words": ["x"]}, "1 label_words for 2 labels"),
    ({"template": "{txt} {mask}"}, "allowed are {text}, {pair} and {mask}"),
    ({"source": {}}, "exactly one of local, asset, path, hub, bundled; got none"),
    ({"source": {"path": "rows.csv", "hub": "a/b"}}, "exactly one"),
    ({"source": {"pth": "rows.csv"}}, "unknown key 'pth', did you mean 'path'"),
    ({"kind": "pair"}, "needs fields.pair"),
    ({"values": {"x": "sideways"}}, "unknown labels ['sideways']"),
    ({"metric": None}, "metric: Field required"),
    ({"max_words": 0}, "max_words"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_descriptions_are_refused_with_the_place(folder, change, message):
    path = write(folder, **change)
    with pytest.raises(TaskError, match=re.escape(message)) as error:
        load_task(path)
    assert "task.yaml" in str(error.value)
    assert "\n" not in str(error.value)


UNREADABLE = [
    ({"fields": {"text": "texts", "label": "mood"}}, "no column 'texts', did you mean 'text'"),
    ({"fields": {"text": "text", "label": "moood"}}, "no column 'moood', did you mean 'mood'"),
    ({"source": {"path": "row.csv"}}, "does not exist, did you mean 'rows.csv'"),
    ({"source": {"path": "rows.csv", "format": "xls"}}, "no known format"),
    ({"source": {"path": "rows.csv", "where": {"color": 1}}}, "source.where names column 'color'"),
    ({"source": {"path": "rows.csv", "where": {"mood": "none"}}}, "no rows"),
    ({"source": {"path": "rows.csv", "where": {"mood": "up"}}}, "train has no row of class down"),
    ({"source": {"path": "rows.csv", "derive": {"passages": {"text": "nix", "words": 5}}}}, "passages needs column"),
    ({"source": {"path": "rows.csv", "derive": {"pasages": {}}}}, "did you mean 'passages'"),
    ({"source": {"path": "rows.csv", "derive": {"passages": {"color": 5}}}}, "passages with {'color': 5}"),
    ({"source": {"local": "text/nothing_here"}}, "local data folder (TRANSFEROPT_DATA"),
    ({"source": {"bundled": "digit"}}, "unknown bundled set 'digit', did you mean 'digits'"),
    ({"splits": {"validation": 0.5, "test": 0.6}}, "leave rows for train"),
    ({"splits": {"validation": 0.1, "test": 0.2, "by": "whoo"}}, "no column 'whoo', did you mean 'who'"),
]


@pytest.mark.parametrize(("change", "message"), UNREADABLE)
def test_wrong_data_is_refused_before_any_work(folder, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_task(write(folder, **change)).splits()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"text,mood\n\xff\xfe\xfa,up\n"),
        ("a.csv", b""),
        ("a.parquet", b"PAR1 torn"),
        ("a.jsonl", b'{"text": 1\n'),
        ("a.csv.gz", b"no gzip"),
        ("a.yml", b"a: [1"),
    ],
)
def test_damaged_files_are_named(folder, name, data):
    (folder / name).write_bytes(data)
    with pytest.raises(TaskError, match=rf"cannot read .*{re.escape(name)}"):
        load_task(write(folder, file=name)).splits()


def test_a_bit_flipped_in_a_parquet_files_notes_is_harmless_or_named(folder):
    """Arrow's and pandas' notes carry no checksum: pandas fails on damaged ones in ways that do not name the file."""
    whole, read, refused = _parquet_bytes(), 0, []
    sound = load_task(write(folder)).splits().sha256
    for at in range(whole.rindex(b"ARROW:schema"), len(whole) - 8, 61):
        damaged = bytearray(whole)
        damaged[at] ^= 2
        (folder / "a.parquet").write_bytes(damaged)
        try:
            assert load_task(write(folder, file="a.parquet")).splits().sha256 == sound
            read += 1
        except TaskError as error:
            refused.append(str(error))
    assert read >= 5
    assert len(refused) >= 2
    assert all("a.parquet" in message for message in refused)


def test_a_parquet_file_whose_text_is_no_utf8_is_named(folder):
    whole = _parquet_bytes()
    at = whole.index(ROWS["text"][5].encode())
    (folder / "a.parquet").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(TaskError, match=r"cannot read .*a\.parquet"):
        load_task(write(folder, file="a.parquet")).splits()


def _parquet_bytes() -> bytes:
    """Uncompressed and without a dictionary, so that a text stands in it as it is."""
    out = io.BytesIO()
    ROWS.to_parquet(out, compression=None, use_dictionary=False)
    return out.getvalue()


def test_unknown_tasks_get_the_nearest_name(folder):
    with pytest.raises(TaskError, match="unknown task 'rt_frsh', did you mean 'rt_fresh'"):
        load_task("rt_frsh")
    with pytest.raises(TaskError, match="does not exist"):
        load_task(folder / "nothing.yaml")
    (folder / "list.yaml").write_text("- 1\n")
    with pytest.raises(TaskError, match="holds no task"):
        load_task(folder / "list.yaml")
    (folder / "torn.yaml").write_text("a: [1")
    with pytest.raises(TaskError, match=r"torn.yaml is not YAML"):
        load_task(folder / "torn.yaml")


def test_offline_a_hub_data_set_fails_in_one_line(folder, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(AssetError, match=r"cannot read 'nobody/nothing' from the Hugging Face hub") as error:
        load_task(write(folder, source={"hub": "nobody/nothing"})).splits()
    assert "\n" not in str(error.value)


def test_a_hub_data_set_becomes_splits(folder, monkeypatch):
    """The hub is asked through the real datasets library, which reads a local folder here."""
    from huggingface_hub import HfApi

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, *a, **k: None)
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    ROWS[:40].to_parquet(folder / "train.parquet")
    ROWS[40:].to_parquet(folder / "test.parquet")
    (folder / "rows.csv").unlink()
    task = load_task(write(folder.parent, "hubtask", source={"hub": str(folder)}))
    splits = task.splits()
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (40, 20)
    assert splits.test.texts == ROWS.text[40:].tolist()


def test_prompts(folder):
    task = load_task(write(folder, template="{text} It was {mask}.", causal_template="R: {text} It was"))
    assert task.prompt("Fine", mask="<mask>") == "Fine It was <mask>."
    assert task.prompt("Fine", causal=True) == "R: Fine It was"
    with pytest.raises(TaskError, match="has no causal_template"):
        load_task(write(folder, "x")).prompt("Fine", causal=True)


def test_third_party_tasks_join_by_folder(folder, monkeypatch):
    write(folder, "their_task")
    register_tasks(folder)
    assert "their_task" in built_in()
    assert len(load_task("their_task").splits().train) == 42
    other = folder / "other"
    other.mkdir()
    write(other, "rt_fresh")
    with pytest.raises(TaskError, match="task 'rt_fresh' exists already"):
        register_tasks(other)
    TASKS._entries.pop("their_task")


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_built_in_task_is_well_formed(path):
    task = load_task(path.stem)
    assert task.name == path.stem
    assert task.summary
    if task.source.asset:
        assert task.source.asset in table()
    if task.kind in ("single", "pair") and len(task.labels) <= 6:
        assert task.template
        assert task.causal_template
        assert task.label_words
        words = [w.lower() for w in task.label_words]
        assert len(set(words)) == len(words)
    from core.evaluate.metrics import METRICS

    assert task.metric in METRICS


def test_parse_names_its_place():
    with pytest.raises(TaskError, match=r"^here: "):
        parse_task({"kind": "single"}, "here")
