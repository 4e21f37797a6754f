"""The report of a search: its effect, regret curves, trust, latent spaces, the best cells drawn, the Pareto front."""

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.evaluate import plots
from core.evaluate.rows import Row
from core.evaluate.statistics import Interval, bootstrap_mean
from core.nas.draw import draw
from core.nas.searchers.pareto import LATENCY, front
from core.nas.spaces import Space, get_space
from core.state import write_bytes, write_json
from core.transfer import effect_page
from core.transfer.effect import EffectReport, effect
from core.transfer.report import Section, Table, render
from tasks.load_table import described
from tasks.map_latent_spaces import POINTS
from tasks.package_sources import FILES, INDEX
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
LATENTS = (
    "Source space: labelled cells, coloured by what was measured (grey: others; the lowest twentieth has one colour). "
    "Target space: nothing is measured there before the first query, so the colour is the source's expectation of a "
    "cell's rank, by which the two are paired."
)
TAKEN = (
    "What this search knew and what it measured, as files in the folder sources beside this page (in MLflow among the "
    "files of the run). Each teaches another search, here or elsewhere: transferopt run search --set source=FILE. "
    "Latent spaces and maps that a file holds are used there, not trained again."
)
BUDGET = (
    "Budget ratio: queries until the final score of the run without source is first kept, over its own queries for it "
    "(below 1: cheaper). Area: mean lead over all queries, on a logarithmic scale of queries."
)
SHARED = {"run", "queries"}  # settings that do not tell what two searches are compared on
MODULES = ["core.transfer.report", "core.transfer.effect_page", "core.evaluate.plots", "core.nas.draw"]


class ReportConfig(Config):
    """What the page says at its top, and what is compared with what."""

    title: str = Field(description="headline")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")
    headline: str = Field("transfer", description="run whose gain is told at the top, where there is no transfer")
    without: str = Field("no source", description="run over which every gain is")
    cost: str = Field("params", description="what a Pareto front weighs against the answer")


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

    def difference(self, gain: Interval) -> str:
        """A gain with its interval, where seeds give one."""
        form = ".2f" if self == Words() else ".3g"
        known = gain.low is not None and gain.high is not None
        return f"{gain.mean:+{form}}{f' [{gain.low:+{form}}, {gain.high:+{form}}]' if known else ''} {self.unit}"


@stage("report-search", modules=MODULES)
def report_search(
    out: Output,
    config: ReportConfig,
    searches: dict[str, list[Artifact]],
    mapped: Artifact,
    packed: Artifact,
    table: Artifact | None = None,
) -> None:
    """``searches``: target -> its runs (several methods and seeds); ``table``: the user's own that answered them.

    ``packed``: the portable sources of the search; they come to lie beside the page.
    """
    words = Words() if table is None else Words.of(table)
    rows: list[Row] = []
    sections, gains, effects = [], {}, {}
    for target, artifacts in searches.items():
        own = [r for a in artifacts for r in a.rows()]
        rows += own
        sections.append(_target(target, own, artifacts, out, words, config.cost))
        found = effects[target] = _effect(artifacts, config.without)
        sections += _effect_sections(target, found)
        gains[f"gain on {target}"] = _gain(found, config.headline, words)
        out.metrics({f"gain/{target}/{m.method}": m.gain.mean for m in (found.methods if found else ())})
        out.metrics({f"final/{target}/{run}": value for run, value in _finals(own).items()})
    sections.append(_latents(mapped, out))
    sections.append(_portable(packed, out))
    write_json(out.folder / "effect.json", {t: found.as_dict() for t, found in effects.items() if found})
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


def _effect(artifacts: list[Artifact], without: str) -> EffectReport | None:
    """What every run gained over the one without source, paired by seed; None without one or the other.

    The curve over queries is both: what counts as equal budget, and what the area is under. Cost is the time that the
    oracle states for the queries.
    """
    rows: list[Row] = []
    for artifact in artifacts:
        own = [r.model_copy(update={"method": r.settings["run"]}) for r in artifact.rows() if r.value is not None]
        rows += own
        if own and _seconds(artifact) is not None:
            rows.append(own[-1].model_copy(update={"metric": "seconds", "value": _seconds(artifact)}))
    methods = {r.method for r in rows}
    if without not in methods or len(methods) < 2:
        return None
    found = effect(rows, metric="score", without=without, unit="queries", size="queries", ignore=tuple(SHARED))
    return replace(found, curves={})  # which are drawn with their bands already


def _seconds(artifact: Artifact) -> float | None:
    """What a search's queries took, as its oracle states it."""
    return artifact.facts()["budget"].get("simulated_seconds") or None


def _effect_sections(target: str, found: EffectReport | None) -> list[Section]:
    """The effect of all runs on one target, under its name; their seconds stand with the runs."""
    if found is None:
        return []
    section = effect_page.sections(found)[0]
    return [replace(section, title=f"{target}: transfer effect", text=f"{section.text}\n\n{BUDGET}")]


def _gain(found: EffectReport | None, headline: str, words: Words) -> str:
    """With source against without, at the last query: of ``transfer``, or of the search that stands for it."""
    gains = {} if found is None else {m.method: m.gain for m in found.methods}
    name = "transfer" if "transfer" in gains else headline
    if name not in gains:
        return "not measured"
    over = "the same search without source" if name == "transfer" else f"{found.without} ({name})"
    return f"{words.difference(gains[name])} over {over}"


def _target(target: str, rows: list[Row], artifacts: list[Artifact], out: Output, words: Words, cost: str) -> Section:
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
    lines, cells, timed = [], [], any(_seconds(a) for a in artifacts)
    for artifact in artifacts:
        told = json.loads((artifact.folder / TRIALS).read_text())
        last = told["kept"][str(len(told["trials"]))]
        values = [last.get("answer"), *([last.get(words.test)] if words.test else [])]
        values += [_seconds(artifact)] if timed else []
        lines.append([told["label"], len(told["trials"]), *values, last["cell"]])
        cells.append((told["label"], get_space(told["space"], **told.get("settings", {})), last["cell"]))
    figures += _gates(artifacts, target)
    figures += _drawn(cells, name, out)
    measured = [f"{words.answer} of the cell kept", *([words.test] if words.test else [])]
    columns = ["run", "queries", *measured, *(["seconds"] if timed else []), "cell"]
    tables = [Table(columns, lines), *_pareto(artifacts, words, cost)]
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


def _drawn(cells: list[tuple[str, Space, str]], name: str, out: Output) -> list[Any]:
    """The kept cells as graphs, each once."""
    figures, seen = [], set()
    for label, space, text in cells:
        if text and text not in seen and len(figures) < 3:
            seen.add(text)
            figure = draw(space, [space.parse(text)], [f"{label}: {text}"[:90]])
            write_bytes(out.folder / f"cell-{name}-{len(figures)}.png", plots.png(figure))
            figures.append(figure)
    return figures


def _pareto(artifacts: list[Artifact], words: Words, cost: str) -> list[Table]:
    """The answer against ``cost`` in the first multi-objective run, if there is one."""
    for artifact in artifacts:
        told = json.loads((artifact.folder / TRIALS).read_text())
        if told["searcher"] == "pareto":
            trials = told["trials"]
            chosen = front([t["score"] for t in trials], [t[cost] for t in trials])
            shown = {"score": words.answer, "params": "parameters", "flops": "FLOPs"}
            shown |= {LATENCY: "latency, s"} if cost == LATENCY else {}
            lines = [[*(trials[i][name] for name in shown), trials[i]["cell"]] for i in chosen]
            caption = f"Pareto front of {words.answer} and {cost}, first seed"
            return [Table([*shown.values(), "cell"], lines, caption)]
    return []


def _portable(packed: Artifact, out: Output) -> Section:
    """The portable sources, laid beside the page."""
    out.link(packed.folder / FILES, FILES)
    files = json.loads((packed.folder / INDEX).read_text())
    lines = [
        [
            file,
            f["name"],
            f["space"],
            f["labels"],
            f["elites"],
            ", ".join(f["latent spaces"]) or "none",
            f["map"] or "none",
        ]
        for file, f in files.items()
    ]
    columns = ("file", "source", "space", "labels", "elites", "latent spaces", "map")
    return Section("Sources to take along", TAKEN, [Table(columns, lines)])


def _latents(mapped: Artifact, out: Output) -> Section:
    """First two principal components of both latent spaces."""
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA

    with np.load(mapped.folder / POINTS) as points:
        data = dict(points)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)

    def show(axes: Any, name: str, coloured: np.ndarray, values: np.ndarray, label: str) -> PCA:
        pca = PCA(2, random_state=0).fit(data[name])
        axes.scatter(*pca.transform(data[name]).T, s=3, color="#CCCCCC")
        low = np.quantile(values, 0.05)  # a few cells that learned nothing would leave one colour to all others
        shown = axes.scatter(*pca.transform(coloured).T, c=values, s=6, cmap="viridis", vmin=low)
        figure.colorbar(shown, ax=axes, label=label, extend="min")
        axes.set(title=f"{name} latent space", xlabel="component 1", ylabel="component 2")
        return pca

    show(left, "source", data["source_labelled"], data["source_value"], "measured")
    pca = show(right, "target", data["target"], data["target_value"], "expected rank")
    right.scatter(*pca.transform(data["mapped"]).T, marker="x", color="#D55E00", label="mapped elites")
    right.legend()
    write_bytes(out.folder / "latent-spaces.png", plots.png(figure))
    return Section("Latent spaces", LATENTS, [], [figure])
