"""The effect report as sections of a page and as a Markdown table."""

from core.evaluate import plots
from core.transfer.effect import EffectReport
from core.transfer.report import Section, Table, cell

COLUMNS = ("method", "score", "gain", "gain over items", "p (Holm)", "p (McNemar)", "harm", "harm by chance")
COLUMNS += ("budget ratio", "area", "forgetting", "pairs")


def sections(report: EffectReport) -> list[Section]:
    """Gain and harm, the data-efficiency curves where there are some, calibration and cost."""
    named = {m.method: m for m in report.methods}
    bars = plots.bars_with_intervals(
        {"gain": {name: m.gain for name, m in named.items()}},
        f"gain in {report.metric}",
        f"Gain over {report.without!r} at equal budget",
        reference=0,
    )
    out = [
        Section(
            "Transfer effect",
            f"Gain is the score with transfer less the score of {report.without!r} at equal {report.unit} "
            f"({report.without!r} scores {report.measured(report.baseline)}; a gain above 0 is better, whatever the "
            "metric). Harm is the share of runs below the 5th percentile of the "
            "runs without transfer; compare it with what chance alone gives. Intervals are 95 % over cells and seeds.",
            [Table(COLUMNS, table(report))],
            [bars],
        )
    ]
    if any(len(curve) > 1 for curve in report.curves.values()):  # one size is no curve
        curves = {m: (list(c), [report.measured(i) for i in c.values()]) for m, c in report.curves.items() if c}
        figure = plots.curves_with_bands(curves, "examples", report.metric, "Data efficiency", log_x=True)
        out.append(Section("Data efficiency", figures=[figure]))
    costs = list(dict.fromkeys(k for m in report.methods for k in (*m.calibration, *m.cost)))
    if costs:
        rows = [[m.method, *({**m.calibration, **m.cost}.get(k) for k in costs)] for m in report.methods]
        text = "Calibration errors are differences to the run without transfer (negative: better)."
        out.append(Section("Calibration and cost", text, [Table(("method", *costs), rows)]))
    return out


def table(report: EffectReport) -> list[list[object]]:
    """One row a method, in the order of :data:`COLUMNS`."""
    rows = []
    for m in report.methods:
        values = [report.measured(m.score), m.gain, m.gain_items, m.p_holm, m.mcnemar_p, m.harm, m.harm_chance]
        rows.append([m.method, *values, _ratio(m), m.area, m.forgetting, m.pairs])
    return rows


def markdown(report: EffectReport) -> str:
    """The table of effects in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in table(report)]
    return "\n".join(lines)


def _ratio(method) -> str | None:
    if method.budget_ratio is None:
        return "not reached" if method.not_reached else None
    missed = f" ({method.not_reached} cells not reached)" if method.not_reached else ""
    return f"{method.budget_ratio:.3g}{missed}"
