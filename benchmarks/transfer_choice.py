"""What the rows of the transfer benchmark say about strategies, choosers and scores: pure functions of rows."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np

from core.evaluate.rows import Row
from core.transfer.durations import TOKENS_A_WORD
from core.transfer.experience import Experience
from core.transfer.history import cell_name
from core.transfer.recommend import NO_TRANSFER, Recommender, similarity_rule, weighted_tau
from core.transfer.scores import SCORES

TARGETS = ("trec", "cola", "sst2_sent", "subj")
# Other data: past transfers to learn from, and all that is tuned on. No texts that a target has too.
HISTORY = (
    *("mrpc", "cr", "ag_news", "qnli", "rte"),
    *("sms_spam", "headline_period", "reuters_r8", "imdb", "snli", "qqp"),
)
SEEDS = (0, 1, 2)
SIZES = {"minilm": (16, 100, 1000), "expert": (16, 100), "smollm2": (16, 100), "mpnet": (16, 100)}
COMPARED = ("share", "linear_probe", "full", "lora", "freeze", "adapter", "scratch")
ALSO = ("ia3", "prompt_tuning", "prefix_tuning")
CHOOSERS = ("recommender", "without history", "history alone", "similarity rule")
ORACLE = "the other seeds"
TAU_SIZE = 100
LONGEST = 48  # tokens of a text

Where = tuple[str, str, int]


def accuracies(rows: Sequence[Row]) -> dict[Where, dict[str, dict[int, float]]]:
    """(source, target, n) -> strategy -> seed -> accuracy."""
    out: dict[Where, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        if r.metric == "accuracy" and r.value is not None:
            out[where_of(r)][r.method][r.seed] = r.value
    return out


def situations(rows: Sequence[Row]) -> dict[Where, dict[str, float | None]]:
    """(source, target, n) -> measured quantities, means over seeds."""
    found: dict[Where, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r.method == "situation":
            values = found[where_of(r)][r.metric.removeprefix("situation.")]
            if r.value is not None:
                values.append(r.value)
    return {w: {k: float(np.mean(v)) if v else None for k, v in q.items()} for w, q in found.items()}


def complete(rows: Sequence[Row]) -> dict[Where, dict[str, float]]:
    """The cells of the 36 in which every compared strategy has its three seeds: mean accuracies."""
    return {w: v for w, v in means(rows, len(SEEDS)).items() if w[1] in TARGETS}


def means(rows: Sequence[Row], seeds: int) -> dict[Where, dict[str, float]]:
    """Mean accuracies of the places where every compared strategy has at least so many seeds."""
    table = {}
    for where, methods in accuracies(rows).items():
        if ":" not in where[0] and all(len(methods.get(m, {})) >= seeds for m in COMPARED):
            table[where] = {m: float(np.mean(list(methods[m].values()))) for m in COMPARED}
    return table


def experiences(rows: Sequence[Row], targets: Sequence[str]) -> list[Experience]:
    """What happened on these targets, as a recommender learns it."""
    situation, seconds, passes = situations(rows), seconds_of(rows), passes_of(rows)
    situation = {w: s | {"tokens": _tokens(s)} for w, s in situation.items()}
    return [
        Experience(
            situation[w],
            m,
            score,
            seconds.get((w, m), 1.0),
            w[1],
            cell_name(*w, "mean of seeds"),
            passes=passes.get((w, m)),
        )
        for w, scores in means(rows, 1).items()
        if w[1] in targets and w in situation
        for m, score in scores.items()
    ]


def decisions(rows: Sequence[Row]) -> dict[Where, dict[str, str]]:
    """What recommenders and rule pick in each complete cell; no recommender ever saw anything of the cell's target.

    "recommender" learns from the other targets and from the history, "without history" from the other targets alone,
    "history alone" from neither of the four.
    """
    table, situation = complete(rows), situations(rows)
    alone = Recommender().fit(experiences(rows, HISTORY))
    out = {}
    for target in sorted({w[1] for w in table}):
        others = [t for t in TARGETS if t != target]
        models = {
            "recommender": Recommender().fit(experiences(rows, [*others, *HISTORY])),
            "without history": Recommender().fit(experiences(rows, others)),
            "history alone": alone,
        }
        for w in table:
            if w[1] == target and w in situation:
                out[w] = {name: model.recommend(situation[w], COMPARED).pick for name, model in models.items()}
                out[w]["similarity rule"] = similarity_rule(situation[w]) or NO_TRANSFER
    return out


def regrets(rows: Sequence[Row]) -> dict[str, dict[Where, float]]:
    """Chooser -> cell -> accuracy lost against the best strategy of the cell; constants choose one strategy always."""
    table, chosen = complete(rows), decisions(rows)
    out = {f"always {m}": {w: max(s.values()) - s[m] for w, s in table.items() if w in chosen} for m in COMPARED}
    for chooser in CHOOSERS:
        out[chooser] = {w: max(table[w].values()) - table[w][d[chooser]] for w, d in chosen.items()}
    return out


def single_seed_regrets(rows: Sequence[Row]) -> dict[str, dict[tuple[Where, int], float]]:
    """The choosers of :func:`regrets` judged on every seed alone, beside one that may look at the cell itself.

    "the other seeds" takes what is best on the mean of the cell's other seeds: nobody who does not know the seed can be
    expected to do better, so it tells how much of a regret is noise of the table.
    """
    table, chosen = accuracies(rows), decisions(rows)
    out: dict[str, dict[tuple[Where, int], float]] = defaultdict(dict)
    for where, picks in chosen.items():
        scores = table[where]
        for seed in SEEDS:
            best = max(scores[m][seed] for m in COMPARED)
            elsewhere = {m: np.mean([v for s, v in scores[m].items() if s != seed]) for m in COMPARED}
            told = {f"always {m}": m for m in COMPARED} | picks | {ORACLE: max(elsewhere, key=elsewhere.__getitem__)}
            for chooser, pick in told.items():
                out[chooser][where, seed] = best - scores[pick][seed]
    return out


def taus(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Score -> target -> weighted tau between score and accuracy of full fine-tuning over the sources at n = 100."""
    realised, situation = accuracies(rows), situations(rows)
    out: dict[str, dict[str, float]] = defaultdict(dict)
    for target in TARGETS:
        places = [w for w in situation if w[1] == target and w[2] == TAU_SIZE and realised.get(w, {}).get("full")]
        for score in feature_scores():
            pairs = [(situation[w].get(score), np.mean(list(realised[w]["full"].values()))) for w in places]
            pairs = [p for p in pairs if p[0] is not None]
            if len(pairs) >= 8:
                value = weighted_tau(*zip(*pairs))
                if value is not None:
                    out[score][target] = value
    return out


def tau_of_other_seeds(rows: Sequence[Row]) -> dict[str, float]:
    """Target -> tau that the accuracy itself reaches as a score: one seed against the mean of the others.

    Mean over the seeds that at least eight sources have. A score that sees no fine-tuning can hardly do better.
    """
    realised, out = accuracies(rows), {}
    for target in TARGETS:
        found = [v["full"] for w, v in realised.items() if w[1] == target and w[2] == TAU_SIZE and len(v["full"]) > 1]
        values = []
        for seed in SEEDS:
            pairs = [(s[seed], np.mean([v for k, v in s.items() if k != seed])) for s in found if seed in s]
            if len(pairs) >= 8 and (value := weighted_tau(*zip(*pairs))) is not None:
                values.append(value)
        if values:
            out[target] = float(np.mean(values))
    return out


def seconds_of(rows: Sequence[Row]) -> dict[tuple[Where, str], float]:
    """(where, strategy) -> median seconds of a fit."""
    values: dict[tuple[Where, str], list[float]] = defaultdict(list)
    for r in rows:
        if r.metric == "seconds" and r.value is not None:
            values[where_of(r), r.method].append(r.value)
    return {k: float(np.median(v)) for k, v in values.items()}


def passes_of(rows: Sequence[Row]) -> dict[tuple[Where, str], float]:
    """(where, strategy) -> training examples passed in a fit, epochs counted; 0 where nothing was trained."""
    rows = [r for r in rows if r.metric == "seconds" and "train_examples" in r.budget]
    return {(where_of(r), r.method): r.budget["train_examples"] for r in rows}


def _tokens(situation: dict[str, float | None]) -> float:
    """Tokens of an example, estimated from its words (the rows have counted none): a pair has twice as many."""
    words = (situation.get("mean_words") or 0.0) * (1 + (situation.get("pair") or 0.0))
    return min(TOKENS_A_WORD * words, float(LONGEST))


def where_of(r: Row) -> Where:
    """Source, target and training size of a row."""
    return r.settings["source"], r.settings["target"], r.settings["n"]


def chosen_elsewhere(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Target -> tau of the score that is best on the mean of the other targets."""
    out = {}
    for target in TARGETS:
        score = max(found, key=lambda k: np.mean([v for t, v in found[k].items() if t != target]))
        out[target] = found[score][target]
    return out


@cache
def feature_scores() -> list[str]:
    """Registered scores that need features and labels alone."""
    return [e.name for e in SCORES if e.facts["needs"] == "features"]
