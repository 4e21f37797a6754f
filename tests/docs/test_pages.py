"""The documentation is whole: every level's page says when to use it and what goes wrong, and links lead somewhere."""

import re
from pathlib import Path

import pytest

from flows.runtime import FLOWS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
LEVELS = ["content", "structure", "system", "merge", "transfer", "chain"]
MADE = re.compile(r"results/")  # tables appear when their benchmark has run


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_says_what_it_does_when_to_use_it_and_what_goes_wrong(level):
    text = (ROOT / "docs" / f"{level}.md").read_text()
    headings = [line.lower() for line in text.splitlines() if line.startswith("##")]
    assert any("when to use" in h for h in headings)
    assert any("traps" in h for h in headings)
    assert "transferopt " in text, "a command to start with"
    assert re.search(r"→|──►|->|\|---|!\[", text), "a picture or table of what happens"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("http") or MADE.search(path):
            continue
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", place.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, target


def test_the_guide_names_every_flow():
    text = "".join(p.read_text() for p in PAGES)
    assert all(f"`{name}`" in text or f"run {name}" in text for name in FLOWS.names())
