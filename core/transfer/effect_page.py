"""The effect report as sections of a page and as a Markdown table."""

from typing import Any

from core.evaluate import plots
from core.transfer.effect import CALIBRATION, EffectReport, MethodEffect
from core.transfer.energy import ENERGY, SOURCES
from core.transfer.report import Section, Table, cell

GAINED = ("score", "gain", "gain over items", "p (Wilcoxon, Holm)", "p (McNemar)", "pairs")
BESIDE = ("harm", "harm by chance", "budget ratio", "area", "forgetting")
COLUMNS = ("method", *GAINED, *BESIDE)
UNITS = {ENERGY: "energy, Wh", "peak_memory_mb": "peak memory, MB"}
FEW = 6  # pairs from which on a two-sided Wilcoxon test can give a p below 5 %


def sections(report: EffectReport, note: str = "") -> list[Section]:
    """Gain and harm, the data-efficiency curves where there are some, calibration and cost.

    Args:
        note: what a reader must know of the twin or the methods of this report.
    """
    text = "\n\n".join(filter(None, (_words(report), note)))
    out = [Section("Transfer effect", text, _tables(report), _bars(report))]
    if any(len(curve) > 1 for curve in report.curves.values()):  # one size is no curve
        curves = {m: (list(c), [report.measured(i) for i in c.values()]) for m, c in report.curves.items() if c}
        figure = plots.curves_with_bands(curves, "examples", report.metric, "Data efficiency", log_x=True)
        out.append(Section("Data efficiency", figures=[figure]))
    return out + _costs(report)


def table(report: EffectReport) -> list[list[object]]:
    """One row a method, in the order of :data:`COLUMNS`."""
    rows = []
    for m in report.methods:
        gained = [report.measured(m.score), m.gain, m.gain_items, m.p_holm, m.mcnemar_p, m.pairs]
        rows.append([m.method, *gained, m.harm, m.harm_chance, _ratio(m), m.area, m.forgetting])
    return rows


def markdown(report: EffectReport) -> str:
    """The table of effects in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in table(report)]
    return "\n".join(lines)


def _tables(report: EffectReport) -> list[Table]:
    """The columns of :func:`table` in two parts, each of which a page is wide enough for."""
    rows = table(report)
    end = 1 + len(GAINED)
    return [
        Table(("method", *GAINED), [row[:end] for row in rows]),
        Table(("method", *BESIDE), [[row[0], *row[end:]] for row in rows]),
    ]


def _bars(report: EffectReport) -> list[Any]:
    """The gains drawn; nothing where nothing was run beside the twin."""
    if not report.methods:
        return []
    gains = {"gain": {m.method: m.gain for m in report.methods}}
    title = f"Gain over {report.without!r} at equal budget"
    return [plots.bars_with_intervals(gains, f"gain in {report.metric}", title, reference=0)]


def _words(report: EffectReport) -> str:
    """What the columns mean here, and what these runs cannot tell."""
    if not report.methods:
        return f"Only {report.without!r} was run: there is nothing to compare it with."
    said = [
        f"Gain is the score with transfer less the score of {report.without!r} at equal {report.unit} "
        f"({report.without!r} scores {report.measured(report.baseline)} in {report.metric}; a gain above 0 is better, "
        "whatever the metric)."
    ]
    if any(m.harm is not None for m in report.methods):
        said.append(
            "Harm is the share of runs below the 5th percentile of the runs without transfer; compare it with what "
            "chance alone gives."
        )
    said.append(_evidence(report))
    if any(m.gain_items for m in report.methods):
        said.append("Gain over items is the gain in accuracy, its interval is over the test items of these runs.")
    if any(m.budget_ratio is not None or m.not_reached for m in report.methods):
        of = "score" if report.reached == report.metric else report.reached
        said.append(
            f"Budget ratio: {report.unit} to reach the final {of} of {report.without!r}, over what it took itself; "
            "below 1 is cheaper."
        )
    else:
        said.append("No method was measured at several budgets, so the budget ratio is undefined.")
    if report.unequal:
        said.append(f"Not at equal {report.unit}, so not compared: {', '.join(report.unequal)}.")
    return " ".join(said)


def _evidence(report: EffectReport) -> str:
    """Over what intervals and tests are."""
    several = f"{report.cells} cells (what is compared in pairs, such as tasks)"
    if report.seeds > 1:
        over = f"{several} and {report.seeds} seeds" if report.cells > 1 else f"{report.seeds} seeds"
        said = f"Intervals are 95 % over {over}."
    elif report.cells > 1:
        said = (
            f"One seed: intervals and Wilcoxon's p are over {several} and do not say what another seed would give; "
            "harm needs several runs without transfer and is undefined."
        )
    else:
        return "One seed: no interval over seeds, no Wilcoxon test and no harm can be had from it."
    few = max((m.pairs for m in report.methods), default=0)
    if 1 < few < FEW:
        least = 2.0 ** (1 - few)  # also how often so many values all lie on one side of their median
        said += (
            f" {few} pairs give no Wilcoxon p below {least:.2g}, and an interval over them holds the true gain in at "
            f"most {100 * (1 - least):.0f} % of cases."
        )
    return said


def _costs(report: EffectReport) -> list[Section]:
    """Calibration and cost of every method and of the twin; nothing where no row tells of them."""
    calibration = [k for k in CALIBRATION if any(k in m.calibration for m in report.methods)]
    costs = list(dict.fromkeys([*report.cost, *(k for m in report.methods for k in m.cost)]))
    if not calibration and not costs:
        return []
    rows = [[report.without, *([0.0] * len(calibration)), *map(report.cost.get, costs)]]
    rows += [[m.method, *map(m.calibration.get, calibration), *map(m.cost.get, costs)] for m in report.methods]
    said = []
    if calibration:
        said.append("Calibration errors are differences to the run without transfer (negative: better).")
    if ENERGY in costs:
        ways = [SOURCES.get(way, way) for way in report.energy_source.split("; ") if way]
        told = " or ".join(ways) or "measured or estimated, which these rows do not say"
        said.append(f"Energy is {told}.")
    shown = [*(f"{k}, difference" for k in calibration), *(UNITS.get(k, k.replace("_", " ")) for k in costs)]
    return [Section("Calibration and cost", " ".join(said), [Table(("method", *shown), rows)])]


def _ratio(method: MethodEffect) -> str | None:
    if method.budget_ratio is None:
        return "not reached" if method.not_reached else None
    missed = f" ({method.not_reached} cells not reached)" if method.not_reached else ""
    return f"{method.budget_ratio:.3g}{missed}"
