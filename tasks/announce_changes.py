"""Tell of a benchmark's outcome: a table in Prefect, an event that automations listen to, a webhook on regression."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import httpx
from pydantic import Field

from core.config import Config
from core.recurring.compare import IMPROVEMENT, REGRESSION, Change
from core.state import write_json
from tasks.report_benchmark import read_changes
from tasks.stage import Artifact, Output, stage

log = logging.getLogger(__name__)
VARIABLE = "TRANSFEROPT_WEBHOOK"
EVENT, RESOURCE = "transferopt.benchmark", "transferopt.benchmark"
OUTCOMES = (REGRESSION, IMPROVEMENT, "unchanged")
ATTEMPTS, TIMEOUT_S, PAUSE_S = 3, 15.0, 2.0


class AnnounceConfig(Config):
    """Whom to tell."""

    run: str = Field(description="id of the benchmark run")
    webhook: str = Field("", description=f"address that gets a POST on regression; empty: {VARIABLE}")
    url: str = Field("", description="where the run is seen")


@stage("announce-changes", modules=["core.recurring.compare"])
def announce_changes(out: Output, config: AnnounceConfig, report: Artifact) -> None:
    """Write what was told to whom. A webhook that does not answer is said, and does not fail the benchmark."""
    headline, changes = read_changes(report.folder)
    told = message(headline, changes, config.run, config.url)
    _show(headline, changes)
    emit(told)
    address = config.webhook or os.environ.get(VARIABLE, "")
    reply = post(address, told) if told["outcome"] == REGRESSION and address else "not asked for"
    out.facts["webhook"] = reply
    write_json(out.folder / "announced.json", {**told, "webhook": reply})


def message(headline: str, changes: Sequence[Change], run: str, url: str) -> dict[str, Any]:
    """What event and webhook carry; ``text`` is what chat services show."""
    found = {v: [c.as_dict() for c in changes if c.verdict == v] for v in (REGRESSION, IMPROVEMENT)}
    outcome = next((v for v in found if found[v]), OUTCOMES[-1])
    return {
        "text": f"transferopt benchmark: {headline}" + (f" {url}" if url else ""),
        "outcome": outcome,
        "run": run,
        "url": url,
        "regressions": found[REGRESSION],
        "improvements": found[IMPROVEMENT],
    }


def emit(told: dict[str, Any]) -> None:
    """Fire the Prefect event ``transferopt.benchmark.OUTCOME``."""
    from prefect.events import emit_event

    emit_event(
        event=f"{EVENT}.{told['outcome']}",
        resource={"prefect.resource.id": RESOURCE, "prefect.resource.name": "recurring benchmark"},
        payload=told,
    )


def post(address: str, told: dict[str, Any]) -> str:
    """POST as JSON; what came of it, in words without the address (it may hold a secret)."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            reply = httpx.post(address, json=told, timeout=TIMEOUT_S)
            reply.raise_for_status()
            return f"delivered ({reply.status_code})"
        except httpx.HTTPStatusError as error:
            failure = f"refused with status {error.response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = f"not reached: {type(error).__name__}"
    log.warning("the regression could not be sent to the webhook: %s", failure)
    return failure


def _show(headline: str, changes: Sequence[Change]) -> None:
    from prefect.artifacts import create_table_artifact

    lines = [{k: v for k, v in c.as_dict().items() if v is not None} for c in changes]
    create_table_artifact(lines, key="benchmark-changes", description=headline)
