"""Compare a benchmark run with its history and draw the trends."""

import json
from pathlib import Path

from pydantic import Field

from core.config import Config
from core.recurring.compare import Change, CompareConfig, compare
from core.recurring.page import headline, trend_page
from core.recurring.store import Store
from core.state import write_bytes, write_json
from tasks.stage import Artifact, Output, stage

CHANGES = "changes.json"
MODULES = ["core.recurring.compare", "core.recurring.page", "core.recurring.store"]


class ReportConfig(Config):
    """What the page says at its top, and when a difference is called one."""

    title: str = Field(description="headline")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")
    run: str = Field(description="id of the benchmark run")
    compare: CompareConfig = Field(CompareConfig(), description="when a difference is called one")
    history_sha256: str = Field(description="hash of the earlier runs' records")


@stage("report-benchmark", modules=MODULES)
def report_benchmark(out: Output, config: ReportConfig, recorded: Artifact) -> None:
    """Write ``changes.json`` and the trend page; hand the rows on."""
    stored = Store().read()
    now, history = stored[stored["run"] == config.run], stored[stored["run"] != config.run]
    changes = compare(now, history, config.compare)
    write_json(out.folder / CHANGES, {"headline": headline(changes), "changes": [c.as_dict() for c in changes]})
    page = trend_page(config.title, config.facts, now, history, changes, config.compare)
    write_bytes(out.folder / "report.html", page.encode())
    out.rows(recorded.rows())
    out.metrics({f"change/{c.level}/{c.method}": c.effect for c in changes if c.effect is not None})
    out.metrics(
        {f"verdicts/{v}": sum(c.verdict == v for c in changes) for v in dict.fromkeys(c.verdict for c in changes)}
    )
    out.budget(recorded.facts()["budget"])


def read_changes(folder: Path) -> tuple[str, list[Change]]:
    """Headline and comparisons that the stage wrote."""
    stored = json.loads((folder / CHANGES).read_text())
    return stored["headline"], [Change(**c) for c in stored["changes"]]
