"""One self-contained HTML page for any flow: facts first, then sections of text, tables and figures.

Text is escaped by jinja2; figures are inlined as SVG images, so the file can be mailed or logged as one artifact.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.evaluate import plots
from core.evaluate.statistics import Interval

UNDEFINED = "undefined"


@dataclass(frozen=True)
class Table:
    """A table: column names and rows of values (numbers, intervals, strings, None for an undefined value)."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.caption!r} has {len(self.columns)} columns, a row has {len(row)} cells")


@dataclass(frozen=True)
class Section:
    """A part of the page. ``figures`` are matplotlib figures (see :mod:`core.evaluate.plots`)."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Any] = ()


def render(title: str, summary: Mapping[str, Any] | str, sections: Sequence[Section]) -> str:
    """The page as HTML text.

    Args:
        title: headline.
        summary: what a reader must know at once: fact -> value, or a sentence.
        sections: in reading order.
    """
    facts = {"": summary} if isinstance(summary, str) else {k: cell(v) for k, v in summary.items()}
    parts = [
        {
            "title": s.title,
            "paragraphs": [p.strip() for p in s.text.split("\n\n") if p.strip()],
            "tables": [_table(t) for t in s.tables],
            "images": [_image(f) for f in s.figures],
        }
        for s in sections
    ]
    return _template().render(title=title, facts=facts, sections=parts)


def cell(value: Any) -> str:
    """A value as a reader wants it: four significant digits, ``undefined`` for None and NaN, yes / no for booleans."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Interval):
        return str(value).replace(", ", ",\u00a0")  # a narrow column breaks before the bracket, not inside
    return str(value)


def _table(table: Table) -> dict[str, Any]:
    numeric = [
        bool(table.rows) and all(isinstance(r[i], (int, float, type(None))) for r in table.rows)
        for i in range(len(table.columns))
    ]
    rows = [[(cell(v), numeric[i]) for i, v in enumerate(row)] for row in table.rows]
    return {"caption": table.caption, "columns": list(zip(table.columns, numeric)), "rows": rows}


def _image(figure: Any) -> dict[str, str]:
    text = plots.svg(figure)
    alt = "; ".join(filter(None, (ax.get_title(loc="left") or ax.get_ylabel() for ax in figure.axes)))
    return {"data": base64.b64encode(text.encode()).decode(), "alt": alt}


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
