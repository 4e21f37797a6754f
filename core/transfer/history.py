"""The recorded history of transfers: what was measured before, what was predicted, what happened."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.evaluate.metrics import METRICS
from core.evaluate.rows import Row, read_rows, write_rows
from core.state import exclusive, home
from core.transfer.experience import Experience
from core.transfer.recommend import REFERENCE, Recommendation

PREDICTED_GAIN, PREDICTED_REGRET = "predicted gain", "predicted regret"
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


def other_experiences(
    path: Path, target: str, examples: int, kind: str = "classification", modality: str = "text"
) -> list[Experience]:
    """Experiences of other targets and sizes of one kind and modality: what happened to texts says nothing of images,
    and advice never rests on the very cells that it is about.
    """
    found = [e for e in read_history(path) if (e.kind, e.modality) == (kind, modality)]
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


def unit_of(metric: str) -> str:
    """What the values of :func:`comparable` are, in words."""
    name = comparable(metric)[0]
    return f"{name} / 100" if metric in PERCENT else f"1 - {name}" if metric in ERRORS else name


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
            if recommendation is not None:
                rows += _predicted(recommendation, e)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, rows)


def _predicted(advice: Recommendation, e: Experience) -> list[Row]:
    """What the advice said of an experience's strategy, with what it is to be compared with; nothing where it knew
    nothing.
    """
    told = {f.strategy: f for f in advice.forecasts if f.regret is not None}
    if e.strategy not in told:
        return []
    forecast = told[e.strategy]
    facts = {"cell": e.cell, "among": list(told), "picked": e.strategy == advice.pick}
    rows = [Row(method=e.strategy, metric=PREDICTED_REGRET, value=forecast.regret, settings=facts)]
    if forecast.gain is not None:
        over = {"cell": e.cell, "over": advice.reference}
        rows.append(Row(method=e.strategy, metric=PREDICTED_GAIN, value=forecast.gain, settings=over))
    return rows


@dataclass(frozen=True)
class Comparison:
    """One past prediction and what happened.

    ``quantity``: "regret", against the best of the strategies of which something was predicted, or "gain", over the
    strategy ``over``. ``picked``: whether the advice was this strategy.
    """

    cell: str
    strategy: str
    quantity: str
    predicted: float
    realised: float
    over: str | None = None
    picked: bool = False


def compared(path: Path) -> list[Comparison]:
    """Past predictions against what happened, each by what it was predicted against; the latest of equal ones.

    Left out are those whose strategy, or what it was to be compared with, has not been run.
    """
    score = {(e.cell, e.strategy): e.score for e in read_history(path)}
    out = {}
    for r in read_rows(path):
        if r.metric not in (PREDICTED_REGRET, PREDICTED_GAIN) or r.value is None:
            continue
        cell, mine = r.settings["cell"], score.get((r.settings["cell"], r.method))
        if r.metric == PREDICTED_GAIN:
            over = r.settings.get("over", REFERENCE)  # once gains were over the linear probe alone
            against, name, more = [score.get((cell, over))], "gain", {"over": over}
        else:
            against = [score.get((cell, s)) for s in r.settings["among"]]
            name, more = "regret", {"picked": r.settings["picked"]}
        if mine is None or None in against:
            continue
        realised = mine - against[0] if name == "gain" else max(against) - mine
        out[cell, r.method, name] = Comparison(cell, r.method, name, r.value, realised, **more)
    return list(out.values())
