"""Would transferability scores and measured distances make better advice? Each is added to what situations are told by.

``python -m benchmarks.transfer_measures`` prints the table of docs/transfer.md from the rows of the transfer benchmark;
nothing is trained. Advice for a target is learned from others: for past targets from the other past ones, which is what
a choice of measures may be tuned on, and for the four targets of the benchmark from the other three and the past ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.transfer_choice import COMPARED, HISTORY, TARGETS, complete, experiences
from core.evaluate.rows import Row, read_rows
from core.progress import progress
from core.transfer.experience import Experience
from core.transfer.history import cell_name
from core.transfer.recommend import MEASURES, TOLERANCE, Recommender

SCORES = ("logme", "h-score-regularised", "sfda", "gbc", "n-leep", "leep")
DRAWS = (0, 1, 2)  # of the votes
DISTANCES = ("mmd", "proxy_a", "label_overlap")
# Differences that count as one where no past target has a value: only a source with known data or classes has these.
DECLARED = {"leep": 0.5, "mmd": 0.1, "proxy_a": 0.5, "label_overlap": 0.5}


def sets(past: Sequence[Experience]) -> Iterator[tuple[str, dict[str, float]]]:
    """Name -> measures: those in use, each candidate beside them, all of them, and all of them counted less.

    A candidate's difference that counts as one is its standard deviation over the past situations.
    """
    scales = {name: _scale(past, name) for name in (*SCORES, *DISTANCES)}
    yield "as it is", dict(MEASURES)
    for name, scale in scales.items():
        yield f"and {name}", MEASURES | {name: scale}
    yield "and all scores", MEASURES | {n: scales[n] for n in SCORES}
    yield "and all distances", MEASURES | {n: scales[n] for n in DISTANCES}
    yield "and all", MEASURES | scales
    yield "and all, a fifth of their squared differences", MEASURES | {n: s * 5**0.5 for n, s in scales.items()}


def lost(
    past: Sequence[Experience], measures: Mapping[str, float], targets: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Cell -> what advice learned from the experiences of all other targets lost against the best strategy there.

    Args:
        seed: of the votes.
    """
    out = {}
    for target in targets:
        model = Recommender(measures=measures, seed=seed).fit([e for e in past if e.group != target])
        cells: dict[str, list[Experience]] = {}
        for e in past:
            if e.group == target:
                cells.setdefault(e.cell, []).append(e)
        for cell, found in cells.items():
            scores = {e.strategy: e.score for e in found}
            out[cell] = max(scores.values()) - scores[model.recommend(found[0].situation, COMPARED).pick]
    return out


def table(rows: Sequence[Row]) -> str:
    """Markdown: share of cells within one point of the best and mean points lost, on past targets and on the four.

    Means over :data:`DRAWS`: what one draw of the votes picks otherwise than another is no merit of a measure.
    """
    old, every = experiences(rows, HISTORY), experiences(rows, (*TARGETS, *HISTORY))
    whole = {cell_name(*w, "mean of seeds") for w in complete(rows)}
    lines = ["| measures | past targets: within 1 point | points lost | the four: within 1 point | points lost |"]
    lines += ["|---|---|---|---|---|"]
    for name, measures in progress(list(sets(old)), "choices of measures", unit="choice"):
        known = [v for draw in DRAWS for v in lost(old, measures, HISTORY, draw).values()]
        four = [v for draw in DRAWS for cell, v in lost(every, measures, TARGETS, draw).items() if cell in whole]
        judged = [_judged(known), _judged(four)]
        lines.append(f"| {name} | {' | '.join(judged)} |")
    return "\n".join(lines)


def _judged(values: Sequence[float]) -> str:
    return f"{np.mean(np.array(values) <= TOLERANCE):.2f} | {100 * np.mean(values):.2f}"


def _scale(past: Sequence[Experience], name: str) -> float:
    situations = {e.cell: e.situation for e in past}.values()
    values = [s[name] for s in situations if s.get(name) is not None]
    return float(np.std(values)) if len(values) > 2 and np.ptp(values) > 0 else DECLARED.get(name, 1.0)


if __name__ == "__main__":
    print(table(read_rows(Path("docs/results/transfer.jsonl"))))
