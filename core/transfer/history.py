"""The recorded history of transfers: what was measured before, what was predicted, what happened."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from core.evaluate.metrics import METRICS
from core.evaluate.rows import Row, read_rows, write_rows
from core.state import exclusive, home
from core.transfer.recommend import Experience, Recommendation

PREDICTED = "predicted gain"
PERCENT, ERRORS = ("bleu", "chrf"), ("wer",)


def default_history() -> Path:
    """``TRANSFEROPT_HISTORY``, else ``<home>/transfer-history.jsonl``."""
    return Path(os.environ.get("TRANSFEROPT_HISTORY") or home() / "transfer-history.jsonl")


def cell_name(source: str, target: str, examples: int, sample: str) -> str:
    """The cell of an experience: ``source/target/examples/sample``."""
    return "/".join((source.replace("/", "_"), target, str(examples), sample[:12]))


def read_history(path: Path) -> list[Experience]:
    """All experiences on record; an absent file is an empty history."""
    return [Experience.of(r) for r in read_rows(path) if r.metric == "experience" and r.value is not None]


def other_experiences(path: Path, target: str, examples: int, kind: str = "classification") -> list[Experience]:
    """Experiences of other targets and sizes of one kind: advice never rests on the very cells that it is about."""
    found = [e for e in read_history(path) if e.kind == kind]
    return [e for e in found if not (e.group == target and e.cell.split("/")[-2] == str(examples))]


def comparable(metric: str) -> tuple[str, Callable[[float], float]]:
    """The metric that an experience records in place of ``metric``, and its scale: at most 1, larger better.

    Errors in the target's own units and percentages of other targets would outweigh everything learned so far.
    """
    if metric in PERCENT:
        return metric, lambda value: value / 100
    if metric in ERRORS:
        return metric, lambda value: 1 - value
    facts = METRICS.entry(metric).facts
    if facts["higher"]:
        return metric, float
    return ("r2" if facts["kind"] == "regression" else "accuracy"), float


def record(path: Path, experiences: Sequence[Experience], recommendation: Recommendation | None = None) -> None:
    """Append experiences, with what had been predicted for each; the same experience is recorded once."""
    with exclusive(path, wait_s=30):
        rows = read_rows(path)
        known = {r.key() for r in rows}
        for e in experiences:
            row = e.row()
            if row.key() in known:
                continue
            rows.append(row)
            predicted = _predicted(recommendation, e.strategy)
            if predicted is not None:
                rows.append(Row(method=e.strategy, metric=PREDICTED, value=predicted, settings={"cell": e.cell}))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, rows)


def compared(path: Path) -> list[tuple[str, str, float, float]]:
    """Past predictions against what happened: (cell, strategy, predicted gain, realised gain over the linear probe)."""
    rows = read_rows(path)
    score = {(e.cell, e.strategy): e.score for e in read_history(path)}
    out = []
    for r in rows:
        if r.metric == PREDICTED and r.value is not None:
            cell = r.settings["cell"]
            if (cell, r.method) in score and (cell, "linear_probe") in score:
                out.append((cell, r.method, r.value, score[cell, r.method] - score[cell, "linear_probe"]))
    return out


def _predicted(recommendation: Recommendation | None, strategy: str) -> float | None:
    if recommendation is None or recommendation.confidence == 0:
        return None
    return next((f.gain for f in recommendation.forecasts if f.strategy == strategy), None)
