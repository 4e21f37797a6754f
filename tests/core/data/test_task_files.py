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


@pytest.mark.parametrize("name", ["dev", "val", "valid", "Validation", "development", "dev-00000-of-00001"])
def test_a_development_file_beside_train_and_test_is_the_validation_split(tmp_path, name):
    for stem, rows in (("train", ROWS[:30]), (name, ROWS[30:40]), ("test", ROWS[40:])):
        rows.to_json(tmp_path / f"{stem}.jsonl", orient="records", lines=True)
    splits = load_task(write(tmp_path, file=".")).splits()
    assert splits.validation.texts == ROWS.text[30:40].tolist()
    assert (len(splits.train), len(splits.test)) == (30, 20)
    cut = load_task(write(tmp_path, "cut", ".", splits={"validation": 0.2})).splits()
    assert len(cut.validation) == 6, "a share that the task names goes first"


def test_doubtful_splits_are_asked_for(tmp_path):
    for stem, rows in (("train", ROWS[:30]), ("dev", ROWS[30:40]), ("val", ROWS[30:40]), ("test", ROWS[40:])):
        rows.to_csv(tmp_path / f"{stem}.csv", index=False)
    with pytest.raises(TaskError, match=r"dev and val may both be validation; say which as splits: {validation: NAME}"):
        load_task(write(tmp_path, file=".")).splits()
    assert len(load_task(write(tmp_path, "dev", ".", splits={"validation": "dev"})).splits().validation) == 10
    assert len(load_task(write(tmp_path, "t", ".", splits={"test": "dev", "validation": "val"})).splits().test) == 10
    ROWS[30:40].to_csv(tmp_path / "validation.csv", index=False)
    assert len(load_task(write(tmp_path, "plain", ".")).splits().validation) == 10
    ROWS.to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    with pytest.raises(TaskError, match=r"2 tables for the split 'train' \(train.csv, train.jsonl\); leave one there"):
        load_task(write(tmp_path, "two", ".")).splits()


def test_splits_of_other_names_are_asked_for_and_parts_are_joined(tmp_path):
    ROWS[:20].to_parquet(tmp_path / "train-00000-of-00002.parquet")
    ROWS[20:40].to_parquet(tmp_path / "train-00001-of-00002-ab12.parquet")
    (tmp_path / "._train-00000-of-00002.parquet").write_bytes(b"of a file manager")
    splits = load_task(write(tmp_path, file=".")).splits()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 40
    ROWS[40:].to_parquet(tmp_path / "holdout.parquet")
    for path in tmp_path.glob("train*"):
        path.rename(path.with_name(path.name.replace("train", "fit")))
    with pytest.raises(TaskError, match=r"none of the splits fit, holdout is called train; say which is"):
        load_task(write(tmp_path, "asked", ".")).splits()
    named = load_task(write(tmp_path, "named", ".", splits={"train": "fit", "test": "holdout"})).splits()
    assert (len(named.train) + len(named.validation), len(named.test)) == (40, 20)
    with pytest.raises(TaskError, match=r"shares must lie between 0 and 1 .* got {'validation': 0.0}"):
        load_task(write(tmp_path, "zero", ".", splits={"train": "fit", "validation": 0, "test": "holdout"})).splits()


def test_hidden_and_missing_columns_name_the_split(tmp_path):
    for stem, rows in (("train", ROWS[:40]), ("test", ROWS[40:].assign(mood="-1"))):
        rows.to_csv(tmp_path / f"{stem}.csv", index=False)
    with pytest.raises(TaskError, match=r"no rows in test \(left out: 20 without label; where labels are hidden"):
        load_task(write(tmp_path, file=".")).splits()
    ROWS[40:].drop(columns="mood").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(TaskError, match=r"task b, test: no column 'mood'"):
        load_task(write(tmp_path, "b", ".")).splits()
    ROWS[40:].drop(columns="text").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(TaskError, match=r"no column 'text'"):
        load_task(write(tmp_path, "c", ".", splits={"leaks": "remove"})).splits()


@pytest.mark.parametrize("form", ["csv", "floats.csv", "jsonl", "parquet"])
@pytest.mark.parametrize("said", [{"labels": [-1, 1]}, {"labels": ["down", "up"], "values": {-1: "down", 1: "up"}}])
def test_minus_one_is_a_class_where_the_task_says_so(tmp_path, form, said):
    rows = ROWS.assign(mood=[1, -1] * 30)[["text", "mood"]]
    path = tmp_path / f"rows.{form}"
    if form == "jsonl":
        rows.to_json(path, orient="records", lines=True)
    elif form == "parquet":
        rows.to_parquet(path)
    else:
        rows.astype({"mood": float if form.startswith("f") else int}).to_csv(path, index=False)
    splits = load_task(write(tmp_path, "signs", path.name, **said)).splits()
    assert not any(splits.dropped.values())
    good = {t: " good " in t for t in splits.train.texts}
    assert [good[t] for t in splits.train.texts] == [label == 1 for label in splits.train.labels]


def test_whole_labels_are_the_same_as_texts_numbers_and_floats(folder):
    for name, labels in (("ints", [1, 0]), ("mixed", [1, "0"]), ("floats", [1.0, 0.0]), ("words", ["1.0", "0.0"])):
        rows = [{"text": t, "mood": labels[i % 2]} for i, t in enumerate(ROWS.text)]
        (folder / "rows.json").write_text(json.dumps(rows))
        for classes in (["down", "up"], [0, 1], [0.0, 1.0]):
            task = write(folder, f"{name}{len(classes)}", "rows.json", labels=classes)
            splits = load_task(task).splits()
            assert [" good " in t for t in splits.train.texts] == [label == 1 for label in splits.train.labels]
    backwards = load_task(write(folder, "back", "rows.json", labels=[1.0, 0.0])).splits()
    assert [" good " in t for t in backwards.train.texts] == [label == 0 for label in backwards.train.labels]


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
    ({"labels": "up, down"}, "labels: give a list, e.g. [a, b], got 'up, down'"),
    ({"source": "rows.csv"}, "source: give keys and values, e.g. {key: value}, got 'rows.csv'"),
    ({"splits": 0.2}, "splits: give keys and values, e.g. {key: value}, got 0.2"),
    ({"fields": {"text": 1}}, "fields.text: give a text (numbers, yes and no in quotes), got 1"),
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
    ({"fields": {"text": "mood", "label": "mood"}}, "name the same column 'mood'; they differ"),
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


NO_TASKS = [
    ("rows.csv", "text,label\n", "rows.csv is a table (csv), not a task; `transferopt task new"),
    ("rows.json", '[{"text": "a"}]', "rows.json holds no task but a list"),
    ("notes.txt", "just words\n", "notes.txt holds no task but a text or number: expected keys like kind"),
    ("half.txt", "kind: single\n", "half.txt: "),
    ("model.bin", b"\x80\x04\x95\xff", "model.bin is no readable YAML: in line 1 it is not utf-8"),
    ("empty.yaml", "", "empty.yaml holds no task but nothing"),
    ("tab.yaml", "kind: single\nsource:\n\tpath: rows.csv\n", "line 3, column 1: found character that cannot start"),
    ("tab2.yaml", "kind: single\nsource:\n\tpath: rows.csv\n", "indent with spaces, not tabs"),
    ("twice.yaml", "kind: single\nmetric: f1\nkind: pair\n", "key 'kind' is given twice, again in line 3; keep one"),
    ("quote.yaml", "kind: single\nsummary: so: what\n", "line 2, column 12: mapping values are not allowed"),
    ("at.yaml", "kind: single\nsummary: @me\n", "put a text that begins with @ in quotes"),
    ("source.yaml", "kind: single\nsource: rows.csv\nlabels: [a, b]\nmetric: accuracy\n", "source: "),
    ("folder", None, "folder is a folder; a task is a YAML file"),
]


@pytest.mark.parametrize(("name", "content", "message"), NO_TASKS)
def test_what_is_no_task_is_named_for_what_it_is(tmp_path, name, content, message):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskError) as error:
        load_task(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_may_have_a_byte_order_mark(folder):
    path = write(folder)
    path.write_text(path.read_text(), encoding="utf-16")
    assert load_task(path).labels == ("down", "up")


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
