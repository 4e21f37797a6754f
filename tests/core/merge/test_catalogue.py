"""The documentation's table of operators is the registry's."""

from pathlib import Path

import pytest

from core.merge.catalogue import insert_table, operator_table
from core.merge.operators import OPERATORS

PAGE = Path(__file__).parents[3] / "docs" / "merge.md"


def test_the_page_shows_every_operator_as_registered():
    text = PAGE.read_text()
    assert insert_table(text) == text, "run: python -m core.merge.catalogue docs/merge.md"
    assert all(f"| `{name}` |" in text for name in OPERATORS.names())


def test_every_operator_says_what_it_does_and_where_it_is_from():
    for line in operator_table().splitlines()[2:]:
        cells = [c.strip() for c in line.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 7
        assert all(cells), line


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="no place"):
        insert_table("# nothing")
