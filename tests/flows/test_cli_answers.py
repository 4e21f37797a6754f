"""What commands answer: second texts, tables, families, findings; what may not be told; whose turn it is on a GPU."""

from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from typer.testing import CliRunner

import tasks  # noqa: F401
from core.evaluate.rows import Row
from core.models.classifier import Prediction
from flows import runtime
from flows.cli import app
from flows.cli.show import console, show_by_task, show_summary
from tasks import health
from tasks.tracking import artifact_limit_bytes, metric_name


class Echo:
    """In the place of a package: answers with what it was given."""

    def __init__(self, folder):
        pass

    def predict(self, texts, pairs=None, task=None):
        return [Prediction(f"{t}|{p}", 1.0) for t, p in zip(texts, pairs or [None] * len(texts), strict=True)]


@pytest.mark.parametrize(
    ("text", "pair", "answers"),
    [
        ("first.txt", "second.txt", ["a|x", "b|y"]),
        ("first.txt", "always this", ["a|always this", "b|always this"]),
        ("one text", "another", ["one text|another"]),
        ("rows.csv", "two", ["c|u", "d|v"]),
        ("rows.csv", "second.txt", ["c|x", "d|y"]),
    ],
)
def test_second_texts_come_from_where_they_are_given(tmp_path, monkeypatch, text, pair, answers):
    monkeypatch.setattr("core.packages.open_package", Echo)
    monkeypatch.chdir(tmp_path)
    Path("first.txt").write_text("a\nb\n")
    Path("second.txt").write_text("x\ny\n")
    Path("rows.csv").write_text("text,two\nc,u\nd,v\n")
    Path("package").mkdir()
    done = CliRunner().invoke(app, ["predict", "package", text, "--pair", pair])
    assert [line.removesuffix("1.000").rstrip() for line in done.output.splitlines()] == answers
    few = CliRunner().invoke(app, ["predict", "package", "one text", "--pair", "second.txt"])
    assert "2 second texts for 1 texts" in str(few.exception)
    into = CliRunner().invoke(app, ["predict", "package", text, "--pair", pair, "--out", "package"])
    assert "package cannot be written" in str(into.exception)


def test_a_mistyped_column_of_second_texts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("core.packages.open_package", Echo)
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,two\nc,u\nd,v\n")
    Path("all.txt").write_text("w\n")
    Path("package").mkdir()
    done = CliRunner().invoke(app, ["predict", "package", "rows.csv", "--pair", "tow"])
    assert "rows.csv has no column 'tow'; it has text, two; give one of them, or a .txt file" in str(done.exception)
    every = CliRunner().invoke(app, ["predict", "package", "rows.csv", "--pair", "all.txt"])
    assert [line.removesuffix("1.000").rstrip() for line in every.output.splitlines()] == ["c|w", "d|w"]


def test_a_line_of_a_text_file_ends_at_a_newline_only(tmp_path, monkeypatch):
    monkeypatch.setattr("core.packages.open_package", Echo)
    texts = ["a\u2028b", "c\x85d", "e\x0cf", "", "g"]
    Path(tmp_path / "package").mkdir()
    for end in ("\n", "\r\n"):
        for last in ("", end):
            (tmp_path / "texts.txt").write_bytes((end.join(texts) + last).encode())
            given = [str(tmp_path / "package"), str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out.csv")]
            assert CliRunner().invoke(app, ["predict", *given]).exit_code == 0
            answers = pd.read_csv(tmp_path / "out.csv")["label"]
            assert list(answers) == [f"{t}|None" for t in texts]


def test_a_table_without_tasks_has_a_heading():
    row = Row(method="share", metric="accuracy", value=0.5, settings={"source": "s", "target": "t"})
    with console.capture() as told:
        show_by_task([row], ("accuracy",))
    assert "share" in told.get()


def test_a_benchmark_of_several_levels_shows_each():
    curve = [Row(method="s", metric="score", value=0.1 * n, settings={"target": "nb201", "queries": n}) for n in (1, 5)]
    other = Row(method="average", metric="accuracy", value=0.5, settings={"task": "cr"})

    class Summary:
        rows: ClassVar = [*curve, other]
        budget: ClassVar = {}
        artifact = type("A", (), {"folder": Path("nowhere")})
        mlflow_run_id, prefect_flow_run_id, refused, run_id = None, None, 0, "r"

    with console.capture() as told:
        show_summary(Summary, ("accuracy", "score"))
    assert "nb201: score" in told.get()
    assert "average" in told.get()


def test_every_family_of_methods_is_listed():
    listed = CliRunner().invoke(app, ["methods"]).output
    for family in ("distillation loss", "merge search", "merge basis", "flow", "metric", "task"):
        assert family in listed
        assert CliRunner().invoke(app, ["methods", family]).exit_code == 0


def test_doctor_names_a_package_that_does_not_import(monkeypatch):
    points = [EntryPoint("theirs", "no_such_package.methods", "transferopt")]
    monkeypatch.setattr("tasks.health.plugins", lambda: points)
    found = health.third_party()
    assert "theirs (no_such_package.methods): ModuleNotFoundError" in found.found
    assert found.remedy


def test_doctor_goes_on_where_a_data_folder_is_gone(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFEROPT_DATA", str(tmp_path / "gone"))
    assert "TRANSFEROPT_DATA names" in health.assets().found


def test_no_password_of_an_address_is_told(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://user:secretpw@127.0.0.1:9/api")
    assert "secretpw" not in str(health.prefect_server())


def test_a_wrong_limit_of_artifacts_is_told_before_the_work(monkeypatch):
    monkeypatch.setenv("TRANSFEROPT_ARTIFACT_LIMIT_MB", "abc")
    with pytest.raises(ValueError, match="TRANSFEROPT_ARTIFACT_LIMIT_MB=abc: give a number of megabytes"):
        artifact_limit_bytes()


def test_names_in_other_scripts_stay_apart_and_plain_ones_as_they_are():
    assert metric_name("average/task-cr/accuracy") == "average/task-cr/accuracy"
    names = [metric_name(f"average/task-{t}/accuracy") for t in ("情感", "主题", "my data (v1)", "my data [v1]")]
    assert len(set(names)) == 4
    assert all(n.isascii() and len(n) <= 250 for n in [*names, metric_name("x" * 400)])
    assert metric_name("x" * 400) != metric_name("x" * 401)


@pytest.mark.parametrize(("deployed", "gpu", "waits"), [(True, True, True), (True, False, False), (False, True, False)])
def test_deployments_take_the_gpu_in_turn(monkeypatch, deployed, gpu, waits):
    asked = []

    @contextmanager
    def limit(name):
        asked.append(name)
        yield

    monkeypatch.setattr("prefect.concurrency.sync.concurrency", limit)
    monkeypatch.setattr(runtime, "device", lambda: "cuda" if gpu else None)
    monkeypatch.setattr(runtime, "deployment", type("Deployment", (), {"id": "d" if deployed else None}))
    with runtime.gpu_in_turn(), runtime.gpu_in_turn():
        pass
    assert asked == (["gpu-heavy"] if waits else [])
