"""check and new task: what a user meets first."""

import json

import pandas as pd
import pytest
import yaml

from core.data.check import check
from core.data.examples import TaskError
from core.data.new_task import new_task
from core.data.tasks import load_task


class WordTokenizer:
    """Counts words, as a transformers tokenizer is called."""

    model_max_length = 5

    def __call__(self, texts, pairs=None, **options):
        joined = texts if pairs is None else [f"{a} {b}" for a, b in zip(texts, pairs)]
        return {"input_ids": [t.split() for t in joined]}


@pytest.fixture
def task(tmp_path):
    train = [(f"a plain sentence number {i}", i % 2) for i in range(40)]
    train += [("A plain  sentence NUMBER 2", 0), ("a plain sentence number 3", 0), ("held out", 1), ("", 1)]
    train += [("a much longer sentence of far more than five words", 1)] * 9
    for name, rows in (
        ("train", train),
        ("validation", [("v one", 0), ("v two", 1)]),
        ("test", [("held OUT", 1), ("t", 0)]),
    ):
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / f"{name}.csv", index=False)
    content = {"kind": "single", "source": {"path": "."}, "labels": ["no", "yes"], "metric": "accuracy"}
    content |= {"template": "{text} It is {mask}.", "label_words": ["bad", "good"]}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    return load_task(tmp_path / "t.yaml")


def test_a_report_says_what_was_planted(task):
    report = check(task, WordTokenizer())
    assert report.counts == {"train": 52, "validation": 2, "test": 2}
    assert report.dropped["train"] == {"empty": 1}
    assert report.balance["train"] == {"no": 22, "yes": 30}
    assert report.faults["train"]["duplicates"] == 9
    assert report.faults["train"]["conflicting"] == 2
    assert report.leaks == {"train in validation": 0, "train in test": 1, "validation in test": 0}
    assert report.truncated["train"] == pytest.approx(9 / 52)
    assert report.max_length == 5
    assert (
        report.prompts == {"masked": "a plain sentence number 21 It is [MASK]."} or "[MASK]" in report.prompts["masked"]
    )
    assert any("1 rows of train occur in test" in p for p in report.problems)
    assert any("2 rows of train have equal inputs with different labels" in p for p in report.problems)
    assert json.loads(json.dumps(report.as_dict()))["sha256"] == task.splits().sha256
    text = "\n".join(report.lines())
    for part in (
        "52 rows",
        "1 left out (empty)",
        "9 duplicates",
        "17.3 % longer than 5 tokens",
        "train in test: 1 rows",
    ):
        assert part in text


def test_without_a_tokenizer_nothing_is_said_about_length(task):
    report = check(task)
    assert report.truncated is None
    assert "tokens" not in "\n".join(report.lines())


def test_an_unknown_metric_is_refused_before_reading(task):
    wrong = task.model_copy(update={"metric": "acuracy", "source": task.source.model_copy(update={"path": "/gone"})})
    with pytest.raises(ValueError, match="unknown metric 'acuracy', did you mean 'accuracy'"):
        check(wrong)


@pytest.mark.parametrize(
    ("metric", "wrong"), [("pearson", True), ("bleu", True), ("accuracy", False), ("f1", False), ("auroc", False)]
)
def test_a_metric_of_another_kind_of_answer_is_a_problem(task, metric, wrong):
    found = [p for p in check(task.model_copy(update={"metric": metric})).problems if p.startswith("metric")]
    assert bool(found) == wrong
    if found:
        assert f"metric {metric} does not fit answers that are 2 classes; allowed: accuracy, auroc," in found[0]
        assert "mse" not in found[0]


def test_a_metric_of_two_classes_is_a_problem_of_more_and_texts_and_numbers_have_their_own():
    for name, metric, message in (
        ("digits", "f1", "metric f1 does not fit answers that are 10 classes; allowed: accuracy,"),
        ("diabetes", "accuracy", "answers that are numbers; allowed: mae, mse, pearson, r2, spearman"),
        ("chat_answers", "mse", "answers that are texts; allowed: bleu, chrf, exact_match"),
    ):
        task = load_task(name)
        assert not any("metric" in p for p in check(task).problems)
        assert message in check(task.model_copy(update={"metric": metric})).problems[0]


@pytest.mark.parametrize("name", ["digits", "diabetes", "chat_answers", "chat_reply"])
def test_every_kind_can_be_checked(name):
    report = check(load_task(name))
    assert min(report.counts.values()) > 0
    assert report.lines()


def frame(n=60):
    return pd.DataFrame(
        {
            "id": range(n),
            "comment": [f"the {'pump' if i % 3 else 'valve'} number {i} is broken" for i in range(n)],
            "part": ["pump" if i % 3 else "valve" for i in range(n)],
            "hours": [i / 3 for i in range(n)],
            "sentence2": [f"second text {i}" for i in range(n)],
        }
    )


def make(tmp_path, columns, label, file="data.csv", **options):
    frame()[columns].to_csv(tmp_path / file, index=False)
    return new_task(tmp_path / file, label, **options)


def test_a_text_classification_is_written_in_twelve_lines_and_works(tmp_path):
    path = make(tmp_path, ["id", "comment", "part", "hours"], "part")
    task = load_task(path)
    assert (task.kind, task.fields.text, task.labels) == ("single", "comment", ("pump", "valve"))
    assert len(path.read_text().splitlines()) <= 12
    assert "path: data.csv" in path.read_text()
    assert len(task.splits().train) == 42
    assert "[MASK]" in task.prompt("x")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("data.csv", "data.yaml"):
        (tmp_path / name).rename(moved / name)
    assert len(load_task(moved / "data.yaml").splits().train) == 42


def test_kinds_are_guessed(tmp_path):
    assert load_task(make(tmp_path, ["comment", "sentence2", "part"], "part", "a.csv")).kind == "pair"
    assert load_task(make(tmp_path, ["comment", "hours"], "hours", "b.csv")).kind == "regression"
    table = load_task(make(tmp_path, ["hours", "id", "part"], "part", "c.csv"))
    assert (table.kind, table.fields.features) == ("table", ("hours", "id"))
    assert load_task(make(tmp_path, ["id", "hours"], "hours", "d.csv")).metric == "r2"


def test_wrong_calls_are_refused_and_write_nothing(tmp_path):
    make(tmp_path, ["comment", "part"], "part")
    with pytest.raises(TaskError, match="exists; write over it with --force, or give another path with --out"):
        new_task(tmp_path / "data.csv", "part")
    for label, options in (("parts", {}), ("part", {"kind": "singel"})):  # what else is wrong is said first
        with pytest.raises(TaskError, match="did you mean"):
            new_task(tmp_path / "data.csv", label, **options)
    before = sorted(p.name for p in tmp_path.iterdir())
    (tmp_path / "data.yaml").rename(tmp_path / "kept.yaml")
    for label, options, message in (
        ("parts", {}, "no column 'parts', did you mean 'part'"),
        ("part", {"text": "coment"}, "no column 'coment', did you mean 'comment'"),
        ("part", {"kind": "singel"}, "unknown kind 'singel', did you mean 'single'"),
        ("part", {"out": tmp_path}, "cannot be a task file; give --out a path that ends in .yaml"),
        ("part", {"sep": ";;"}, "--sep is one character"),
        ("part", {"encoding": "latn-1"}, "--encoding 'latn-1' is not known"),
    ):
        with pytest.raises(TaskError, match=message):
            new_task(tmp_path / "data.csv", label, **options)
    with pytest.raises(TaskError, match="does not exist"):
        new_task(tmp_path / "nothing.csv", "part")
    with pytest.raises(TaskError, match="is a folder; give one table"):
        new_task(tmp_path, "part")
    frame().assign(part="pump")[["comment", "part"]].to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(TaskError, match="needs two classes"):
        new_task(tmp_path / "data.csv", "part")
    (tmp_path / "kept.yaml").rename(tmp_path / "data.yaml")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_csv_of_another_separator_and_encoding_names_the_options_that_read_it(tmp_path):
    rows = frame().assign(comment=[f"Pumpe, Größe {i}" for i in range(60)])[["comment", "part"]]
    rows.to_csv(tmp_path / "data.csv", index=False, sep=";", encoding="latin-1")
    with pytest.raises(TaskError, match="it is not utf-8; give its encoding with --encoding"):
        new_task(tmp_path / "data.csv", "part", sep=";")
    with pytest.raises(TaskError, match=r"Has: comment;part; if these are several columns.* with --sep ';'"):
        new_task(tmp_path / "data.csv", "part", encoding="latin-1")
    task = load_task(new_task(tmp_path / "data.csv", "part", sep=";", encoding="latin-1"))
    assert task.source.options == {"sep": ";", "encoding": "latin-1"}
    assert "Größe" in task.splits().train.texts[0]
    rows.to_csv(tmp_path / "tabs.csv", index=False, sep="\t")
    assert load_task(new_task(tmp_path / "tabs.csv", "part", sep=r"\t")).source.options == {"sep": "\t"}
    rows.to_json(tmp_path / "data.jsonl", orient="records", lines=True)
    with pytest.raises(TaskError, match="--sep is for csv and tsv files only"):
        new_task(tmp_path / "data.jsonl", "part", sep=";")


def test_a_table_that_cannot_be_cut_into_cells_names_the_separator(tmp_path):
    (tmp_path / "data.csv").write_text("note;part\nno comma;pump\none, two, three;valve\n")
    with pytest.raises(TaskError, match="if its cells are not separated by ',', give --sep"):
        new_task(tmp_path / "data.csv", "part")


def test_classes_with_too_few_different_rows_are_named_with_what_they_need(tmp_path):
    pd.DataFrame({"text": [f"text {i}" for i in range(40)], "part": [f"class {i}" for i in range(40)]}).to_csv(
        tmp_path / "data.csv", index=False
    )
    with pytest.raises(TaskError, match=r"40 of 40 classes have .* \('class 0' has 1\); each class needs at least 3"):
        new_task(tmp_path / "data.csv", "part")
    few = pd.DataFrame({"text": ["one", "two", "three", "four", "five", "six"], "part": ["a", "b"] * 3})
    few.to_csv(tmp_path / "data.csv", index=False)
    assert len(load_task(new_task(tmp_path / "data.csv", "part")).splits().train) == 2
    few.assign(text=["one", "two", "One.", "four", "five", "six"]).to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(TaskError, match=r"1 of 2 classes .* \('a' has 2\)"):
        new_task(tmp_path / "data.csv", "part", overwrite=True)
    few.drop(columns="part").assign(hours=[0.5] * 6).head(2).to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(TaskError, match="has 2 rows of different texts; a task needs at least 3"):
        new_task(tmp_path / "data.csv", "hours", overwrite=True)


def test_a_task_file_that_could_not_be_replaced_is_as_it_was(tmp_path):
    path = make(tmp_path, ["comment", "part"], "part")
    before = path.read_bytes()
    with pytest.raises(TaskError, match="holds 'pump'"):
        new_task(tmp_path / "data.csv", "part", text="comment", kind="regression", overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "It is {mask}."}, "template has no {text}: a language model cannot answer"),
        ({"template": "{text} It is."}, "template has no {mask}: a language model cannot answer"),
        ({"causal_template": "It is"}, "causal_template has no {text}"),
        ({"kind": "pair", "fields": {"pair": "label"}}, "template has no {pair}"),
        ({"label_words": ["Good", "fine|good"]}, "label word 'good' stands for no and yes"),
    ],
)
def test_prompts_that_cannot_be_answered_are_problems(task, change, message):
    changed = type(task).model_validate({**task.model_dump(by_alias=True), **change})
    assert any(message in problem for problem in check(changed).problems)
    assert not any("answer" in problem for problem in check(task).problems)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("signs.csv", {"label": [(-1, 1)[i % 2] for i in range(40)]}, "holds -1, which marks a hidden label"),
        ("tags.jsonl", {"label": [["a"]] * 40}, "column 'label' holds lists or records"),
        ("texts.jsonl", {"text": [["a", "b"]] * 40}, "column 'text' holds lists or records"),
        ("records.json", {"label": [{"id": i % 2} for i in range(40)]}, "column 'label' holds lists or records"),
    ],
)
def test_cells_that_would_be_misread_are_refused(tmp_path, name, rows, message):
    table = pd.DataFrame({"text": [f"word {i}" for i in range(40)], "label": ["a", "b"] * 20} | rows)
    path = tmp_path / name
    if name.endswith("csv"):
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=name.endswith("jsonl"))
    with pytest.raises(TaskError, match=message):
        new_task(path, "label")
    assert not path.with_suffix(".yaml").exists()


def test_a_byte_order_mark_before_json_lines_is_read(tmp_path):
    lines = "".join(json.dumps({"text": f"word {i}", "label": i % 2}) + "\n" for i in range(20))
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8-sig")
    assert load_task(new_task(tmp_path / "rows.jsonl", "label")).splits().train.texts[0].startswith("word")


def test_minus_one_is_a_class_or_no_label_as_the_user_says(tmp_path):
    rows = pd.DataFrame({"text": [f"word {i}" for i in range(60)], "label": [i % 3 - 1 for i in range(60)]})
    rows.to_csv(tmp_path / "signs.csv", index=False)
    with pytest.raises(TaskError, match=r"--labels=0,1,-1 where it is one, --labels=0,1 where such rows have no label"):
        new_task(tmp_path / "signs.csv", "label")
    three = load_task(new_task(tmp_path / "signs.csv", "label", labels="-1, 0, 1"))
    assert three.labels == ("-1", "0", "1")
    splits = three.splits()
    assert not any(splits.dropped.values())
    assert all(n == int(t.split()[1]) % 3 for t, n in zip(splits.train.texts, splits.train.labels))
    two = load_task(new_task(tmp_path / "signs.csv", "label", labels="0,1", overwrite=True))
    assert sum(d.get("without label", 0) for d in two.splits().dropped.values()) == 20
    with pytest.raises(TaskError, match=r"holds no '2'.* Has: 0, 1, -1"):
        new_task(tmp_path / "signs.csv", "label", labels="0,2", overwrite=True)
    with pytest.raises(TaskError, match="kind regression has no classes; leave --labels out"):
        new_task(tmp_path / "signs.csv", "label", labels="0,1", kind="regression", overwrite=True)


def test_whole_numbers_beside_missing_labels_are_classes(tmp_path):
    rows = pd.DataFrame({"text": [f"word {i}" for i in range(40)], "label": [i % 2 for i in range(38)] + [None] * 2})
    rows.to_csv(tmp_path / "rows.csv", index=False)  # written as 0.0 and 1.0
    task = load_task(new_task(tmp_path / "rows.csv", "label"))
    assert task.labels == ("0", "1")
    assert sum(d.get("without label", 0) for d in task.splits().dropped.values()) == 2


def test_numbers_with_missing_cells_are_a_regression_and_no_text(tmp_path):
    rows = frame().assign(hours=[None, *(i / 3 for i in range(1, 60))], size=[None, *range(10**9, 10**9 + 59)])
    rows[["size", "comment", "hours"]].to_csv(tmp_path / "rows.csv", index=False)
    task = load_task(new_task(tmp_path / "rows.csv", "hours"))
    assert (task.kind, task.fields.text) == ("regression", "comment")


def test_lists_in_columns_that_are_not_read_do_no_harm(tmp_path):
    frame()[["comment", "part"]].assign(tags=[["a", "b"]] * 60).to_json(
        tmp_path / "rows.jsonl", orient="records", lines=True
    )
    assert load_task(new_task(tmp_path / "rows.jsonl", "part")).fields.text == "comment"


def test_a_test_file_beside_the_train_file_is_said_to_be_unused(tmp_path):
    frame()[["comment", "part"]].to_csv(tmp_path / "train.csv", index=False)
    task = load_task(new_task(tmp_path / "train.csv", "part"))
    assert not any("not read" in problem for problem in check(task).problems)
    for name in ("dev.csv", "test.jsonl", "notes.csv"):
        (tmp_path / name).write_text("")
    assert any("dev.csv, test.jsonl beside train.csv not read" in problem for problem in check(task).problems)


def test_several_classes_a_text_html_and_a_missing_header_are_said(tmp_path):
    labels = ["bug", "ui", "bug|ui", "login", "bug|login"]
    texts = [f"<p>text &amp; number {i}</p>" for i in range(100)]
    pd.DataFrame({"text": texts, "label": labels * 20}).to_csv(tmp_path / "many.csv", index=False)
    task = load_task(new_task(tmp_path / "many.csv", "label"))
    assert "bug ui" in task.label_words, "a | would part two words for one class"
    problems = "\n".join(check(task).problems)
    assert "labels such as 'bug|login' join others: a text has one class here" in problems
    assert "70 texts of train hold HTML; `normalise: [html, spaces]`" in problems
    assert "label word" not in problems
    assert not any("join" in p or "HTML" in p for p in check(load_task("chat_reply")).problems)
    (tmp_path / "nohead.csv").write_text("".join(f"{i % 2},some words {i}\n" for i in range(40)))
    with pytest.raises(TaskError, match="column '0' holds 0 too, so its first row seems to be data; put a line"):
        new_task(tmp_path / "nohead.csv", "0")
