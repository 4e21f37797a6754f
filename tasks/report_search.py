"""The report of a search: regret curves, trust, the latent spaces, the best cells drawn, the Pareto front."""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.evaluate import plots
from core.evaluate.rows import Row
from core.evaluate.statistics import Interval, bootstrap_mean
from core.nas.draw import draw
from core.nas.searchers.pareto import front
from core.nas.spaces import get_space
from core.state import write_bytes
from core.transfer.report import Section, Table, render
from tasks.load_table import described
from tasks.map_latent_spaces import POINTS
from tasks.repeatable import repeatable
from tasks.search_architectures import TRIALS, TRUST
from tasks.stage import Artifact, Output, stage

TEXT = (
    "Every query is a true evaluation of a target architecture and is counted. The curve shows the cell that would be "
    "kept after so many queries; bands are 95 % intervals over seeds where there are several."
)
GATE = (
    "Posterior weight of each hypothesis after so many queries: the source is trusted as far as it explains the "
    "answers, and fades where it does not."
)


class ReportConfig(Config):
    """What the page says at its top."""

    title: str = Field(description="headline")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")


@dataclass(frozen=True)
class Words:
    """What the answers of a target are called, and what must be said of where they come from."""

    answer: str = "validation"
    unit: str = "points"
    test: str = "test"
    pool: str = ""

    @classmethod
    def of(cls, table: Artifact) -> "Words":
        """Of a user's own table."""
        told = described(table)
        schema, rows = told["schema"], told["profile"]["rows"]
        pool = (
            f"The pool is closed: only the {rows:,} cells of {told['name']} (sha256 {told['sha256']}) can be asked, so "
            f"the best cell here is the best of that table, not of the space {schema['genotype']}."
        )
        return cls(schema["answer"], schema["test"] or schema["answer"], schema["test"], pool)

    def difference(self, value: float) -> str:
        return f"{value:+.2f} points" if self == Words() else f"{value:+.3g} {self.unit}"


@stage("report-search", modules=["core.transfer.report", "core.evaluate.plots", "core.nas.draw"])
def report_search(
    out: Output,
    config: ReportConfig,
    searches: dict[str, list[Artifact]],
    mapped: Artifact,
    table: Artifact | None = None,
) -> None:
    """``searches``: target -> its runs (several methods and seeds); ``table``: the user's own that answered them."""
    words = Words() if table is None else Words.of(table)
    rows: list[Row] = []
    sections, gained = [], {}
    for target, artifacts in searches.items():
        own = [r for a in artifacts for r in a.rows()]
        rows += own
        sections.append(_target(target, own, artifacts, out, words))
        gained[target] = _gain(own, words)
        out.metrics({f"final/{target}/{run}": value for run, value in _finals(own).items()})
    sections.append(_latents(mapped, out))
    gains = {f"gain on {t}": text for t, text in gained.items()}
    page = render(config.title, config.facts | gains | repeatable(), sections)
    write_bytes(out.folder / "report.html", page.encode())
    out.rows(rows)


def _curves(rows: list[Row]) -> dict[str, tuple[list[int], list[Interval]]]:
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r.value is not None:
            values[r.settings["run"]][r.settings["queries"]].append(r.value)
    return {run: (sorted(v), [bootstrap_mean(v[n]) for n in sorted(v)]) for run, v in values.items()}


def _finals(rows: list[Row]) -> dict[str, float]:
    return {run: intervals[-1].mean for run, (_, intervals) in _curves(rows).items()}


def _gain(rows: list[Row], words: Words) -> str:
    """With source against without, at the last query."""
    finals = _finals(rows)
    ours = [v for k, v in finals.items() if k.startswith("transfer")]
    twin = [v for k, v in finals.items() if k.startswith("no source")]
    if not (ours and twin):
        return "not measured"
    return f"{words.difference(ours[0] - twin[0])} over the same search without source"


def _target(target: str, rows: list[Row], artifacts: list[Artifact], out: Output, words: Words) -> Section:
    """Curves, table, gate and best cells of one target."""
    curves = _curves(rows)
    top = max(i.mean for _, intervals in curves.values() for i in intervals)
    regret = {run: (x, [_below(top, i) for i in intervals]) for run, (x, intervals) in curves.items()}
    figures = [plots.curves_with_bands(curves, "true queries", "score of the cell kept", target)]
    figures.append(
        plots.curves_with_bands(regret, "true queries", f"{words.unit} below the best run here", f"{target}: regret")
    )
    name = target.replace(" ", "-")
    write_bytes(out.folder / f"regret-{name}.png", plots.png(figures[1]))
    lines, cells = [], []
    for artifact in artifacts:
        told = json.loads((artifact.folder / TRIALS).read_text())
        last = told["kept"][str(len(told["trials"]))]
        values = [last.get("answer"), *([last.get(words.test)] if words.test else [])]
        lines.append([told["label"], len(told["trials"]), *values, last["cell"]])
        cells.append((told["label"], told["space"], last["cell"]))
    figures += _gates(artifacts, target)
    figures += _drawn(cells, name, out)
    columns = ["run", "queries", f"{words.answer} of the cell kept", *([words.test] if words.test else []), "cell"]
    tables = [Table(columns, lines), *_pareto(artifacts, words)]
    return Section(target, f"{TEXT}\n\n{words.pool}\n\n{GATE}", tables, figures)


def _below(top: float, i: Interval) -> Interval:
    if i.low is None or i.high is None:
        return Interval(top - i.mean, None, None)
    return Interval(top - i.mean, top - i.high, top - i.low)


def _gates(artifacts: list[Artifact], target: str) -> list[Any]:
    """One picture of the gate: runs with sources, the first seed of each."""
    for artifact in artifacts:
        trust = json.loads((artifact.folder / TRUST).read_text())
        names = sorted({k for t in trust for k in t} - {"queries"})
        if len(names) > 1:
            x = [t["queries"] for t in trust]
            lines = {n: (x, [t[n] for t in trust]) for n in names}
            return [plots.curves_with_bands(lines, "true queries", "posterior weight", f"{target}: trust gate")]
    return []


def _drawn(cells: list[tuple[str, str, str]], name: str, out: Output) -> list[Any]:
    """The kept cells as graphs, each once."""
    figures, seen = [], set()
    for label, space_name, text in cells:
        if text and text not in seen and len(figures) < 3:
            seen.add(text)
            space = get_space(space_name)
            figure = draw(space, [space.parse(text)], [f"{label}: {text}"[:90]])
            write_bytes(out.folder / f"cell-{name}-{len(figures)}.png", plots.png(figure))
            figures.append(figure)
    return figures


def _pareto(artifacts: list[Artifact], words: Words) -> list[Table]:
    """Accuracy against parameters of the first multi-objective run, if there is one."""
    for artifact in artifacts:
        told = json.loads((artifact.folder / TRIALS).read_text())
        if told["label"].startswith("pareto"):
            trials = told["trials"]
            chosen = front([t["score"] for t in trials], [t["params"] for t in trials])
            lines = [[trials[i]["score"], trials[i]["params"], trials[i]["flops"], trials[i]["cell"]] for i in chosen]
            return [Table([words.answer, "parameters", "FLOPs", "cell"], lines, "Pareto front")]
    return []


def _latents(mapped: Artifact, out: Output) -> Section:
    """First two principal components of both latent spaces, coloured by the source's opinion."""
    from sklearn.decomposition import PCA

    with np.load(mapped.folder / POINTS) as points:
        data = dict(points)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for place, name in enumerate(("source", "target")):
        axes = figure.add_subplot(1, 2, place + 1)
        pca = PCA(2, random_state=0).fit(data[name])
        xy = pca.transform(data[name])
        shown = axes.scatter(xy[:, 0], xy[:, 1], c=data[f"{name}_value"], s=6, cmap="viridis")
        if name == "target":
            z = pca.transform(data["mapped"])
            axes.scatter(z[:, 0], z[:, 1], marker="x", color="#D55E00", label="mapped elites")
            axes.legend()
        axes.set(title=f"{name} latent space", xlabel="component 1", ylabel="component 2")
        figure.colorbar(shown, ax=axes, label="expected rank of accuracy")
    write_bytes(out.folder / "latent-spaces.png", plots.png(figure))
    return Section("Latent spaces", "Colour: the source's expectation of a cell's rank.", [], [figure])
