"""The documentation is whole: every level's page says when to use it and what goes wrong, and links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from flows.cli import app
from flows.cli.parameters import read
from flows.runtime import FLOWS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
LEVELS = ["content", "structure", "system", "merge", "transfer", "chain"]
MADE = re.compile(r"results/")  # tables appear when their benchmark has run
COMMAND = re.compile(r"(?:^|^    |`)(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?transferopt (.+)", re.M)


def commands(page: Path) -> list[list[str]]:
    """Arguments of every quoted call of the command line; what follows two spaces, a comment or a mark is no part."""
    quoted = [re.split(r"`|\s{2,}|\s+#", text)[0] for text in COMMAND.findall(page.read_text())]
    return [shlex.split(re.sub(r"\[([A-Z]+)\]", r"\1", text)) for text in quoted]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_says_what_it_does_when_to_use_it_and_what_goes_wrong(level):
    text = (ROOT / "docs" / f"{level}.md").read_text()
    headings = [line.lower() for line in text.splitlines() if line.startswith("##")]
    assert any("when to use" in h for h in headings)
    assert any("traps" in h for h in headings)
    assert any(h == "## results" for h in headings)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_quoted_commands_are_understood(page):
    group = typer.main.get_command(app)
    for name, *arguments in commands(page):
        command = group.get_command(None, name)
        assert command, f"{page.name}: transferopt {name}"
        try:
            given = command.make_context(name, arguments).params
        except typer.BadParameter as error:  # a sentence about an option need not hold the whole command
            if type(error).__name__ == "MissingParameter":
                continue
            raise
        if name == "run" and given["flow"] in FLOWS.names():
            read(FLOWS.get(given["flow"]).form, None, given["set_"]).resolved()


def test_commands_are_found():
    assert sum(len(commands(p)) for p in PAGES) > 50
    assert ["run", "benchmark", "--size", "smoke"] in commands(ROOT / "docs" / "operation.md")
