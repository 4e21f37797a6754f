"""Data that cannot be read is refused when a flow asks for it, in its plan too."""

import pytest
import yaml

from core.data.examples import TaskError
from tasks.load_data import load_data
from tasks.stage import planning


def test_rows_nested_too_deeply_are_one_line(tmp_path):
    deep = 100_000
    (tmp_path / "rows.json").write_text("[" * deep + "]" * deep)
    task = {"kind": "single", "source": {"path": "rows.json"}, "labels": ["a", "b"], "metric": "accuracy"}
    task["fields"] = {"text": "text", "label": "label"}
    (tmp_path / "deep.yaml").write_text(yaml.safe_dump(task))
    with planning(), pytest.raises(TaskError, match=r"deep: cannot read .*rows.json as json .it is nested too deeply"):
        load_data(str(tmp_path / "deep.yaml"))


def test_what_a_task_says_is_part_of_its_data(tmp_path):
    """Prompts are what a user tries out: other label words must not find the old results."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(40)))
    said = "kind: single\nsource: {path: rows.csv}\nlabels: [a, b]\nmetric: accuracy\nlabel_words: [%s, good]\n"
    keys = []
    for word in ("bad", "awful", "bad"):
        (tmp_path / "t.yaml").write_text(said % word)
        with planning():
            keys.append(load_data(str(tmp_path / "t.yaml")).sha256)
    assert keys[0] == keys[2] != keys[1]
