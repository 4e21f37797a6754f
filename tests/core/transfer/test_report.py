"""The page is self-contained, escapes what it is given and says undefined."""

import pytest

from core.evaluate import plots
from core.evaluate.statistics import Interval
from core.transfer.report import Section, Table, render


def test_page_is_self_contained_and_escaped():
    figure = plots.curves_with_bands({"a": ([1, 2], [1.0, 2.0])}, "n", "score", "growth")
    table = Table(("method", "gain"), [("<b>x</b>", 0.123456), ("y", None)], caption="gains")
    page = render("R & D", {"gain": Interval(1, 0.5, 1.5), "harm": True}, [Section("One", "a\n\nb", [table], [figure])])
    assert "R &amp; D" in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x" not in page
    assert "0.1235" in page
    assert "undefined" in page
    assert "1 [0.5,\u00a01.5]" in page
    assert page.count("<p>") == 2
    assert 'alt="growth"' in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_same_input_same_page():
    section = Section("s", "t", [Table(("a",), [(1,)])])
    assert render("t", "one sentence", [section]) == render("t", "one sentence", [section])


def test_ragged_table_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table(("a", "b"), [(1,)])
