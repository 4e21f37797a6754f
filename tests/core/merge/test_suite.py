"""Suites of tasks: files that people write."""

import pytest

from core.merge.suite import load_suite


@pytest.mark.parametrize("text", ["", "names: [cr]", "tasks: []", "tasks: cr", "tasks: [1, 2]", "- cr", "tasks: ["])
def test_a_suite_without_tasks_says_how_one_looks(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no YAML" if text == "tasks: [" else "tasks: .cr, subj."):
        load_suite(path)
