"""The table of merge operators for the documentation, made from the registry's facts.

``python -m core.merge.catalogue docs/merge.md`` rewrites the table between the page's two marks.
"""

import sys
from pathlib import Path

from core.merge.operators import OPERATORS, REQUIRED, Contract, contract
from core.state import write_bytes

BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"
KINDS = {
    "element": "streams",
    "selection": "streams twice",
    "whole": "one tensor in memory",
}


def operator_table() -> str:
    """Markdown: name, what it does, base model, number of models, memory, parameters with defaults, source."""
    lines = [
        "| operator | what it does | base | models | work | parameters | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in OPERATORS:
        c = contract(entry.name)
        work = KINDS[c.kind] + (", random" if c.random else "")
        cells = [f"`{entry.name}`", entry.summary, c.base, _models(c), work, _parameters(c), c.source]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def insert_table(page: str) -> str:
    """``page`` with the table between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no place for the table; put {BEGIN} and {END} into it")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n{operator_table()}\n{END}{after}"


def _models(c: Contract) -> str:
    if c.max_models == c.min_models:
        return str(c.min_models)
    return f"{c.min_models} or more" if c.max_models is None else f"{c.min_models} to {c.max_models}"


def _parameters(c: Contract) -> str:
    def one(name: str) -> str:
        p = c.parameters[name]
        default = "required" if p.default is REQUIRED else p.default
        return f"{name} ({default}{'' if p.scope == 'shared' else ', per model'})"

    return ", ".join(one(name) for name in c.parameters) or "none"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_bytes(target, insert_table(target.read_text()).encode())
