"""The comparison with the history: what is paired with what, what is flagged, and what never is."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from core.evaluate.rows import Row
from core.recurring.compare import (
    EQUAL,
    FEW,
    IMPROVEMENT,
    NEW,
    REGRESSION,
    UNSURE,
    CompareConfig,
    compare,
    measured,
    needed_pairs,
    paired,
)
from core.recurring.page import headline, trend_page
from core.recurring.store import Part, RunFacts, records

TASKS = [f"t{i}" for i in range(6)]


def run(number, values, setup="default", level="merge"):
    """``values[method][task][seed]`` in points."""
    rows = [
        Row(method=m, metric="accuracy", value=v / 100, seed=s, settings={"task": t})
        for m, tasks in values.items()
        for t, seeds in tasks.items()
        for s, v in seeds.items()
    ]
    facts = RunFacts(run=f"r{number}", time=datetime(2026, 1, 3, tzinfo=UTC) + timedelta(weeks=number))
    return records(facts, [Part(level, {"size": setup}, rows)])


def draws(seeds, seed=0, shift=0.0, methods=("a", "b", "c", "d"), noise=3.0):
    """The method a is shifted by so many points, with some spread over tasks and seeds."""
    rng = np.random.default_rng(seed)
    return {
        m: {t: {s: 70 + rng.normal(0, noise) + (rng.normal(shift, abs(shift) / 2) if m == "a" else 0) for s in seeds}
            for t in TASKS}
        for m in methods
    }  # fmt: skip


def by_method(changes):
    return {c.method: c for c in changes}


def test_equal_runs_are_equal_and_a_first_run_has_no_history():
    first = run(0, draws(range(3)))
    assert {c.verdict for c in compare(run(1, draws(range(3))), first)} == {EQUAL}
    assert {c.verdict for c in compare(first, first)} == {NEW}, "a run is no history of its own"
    assert headline(compare(first, first)).startswith("no history yet")
    assert {c.verdict for c in compare(run(1, draws(range(3)), setup="full"), first)} == {NEW}


@pytest.mark.parametrize(("sign", "verdict"), [(-1, REGRESSION), (1, IMPROVEMENT)])
def test_a_shift_is_found_with_its_size_and_sign(sign, verdict):
    old = draws(range(3))
    new = {m: {t: {s: v + sign * (5 + (s - 1)) * (m == "a") for s, v in seeds.items()} for t, seeds in ts.items()}
           for m, ts in old.items()}  # fmt: skip
    found = compare(run(1, new), run(0, old))
    assert (found[0].method, found[0].verdict) == ("a", verdict)
    assert found[0].effect == pytest.approx(5 * sign)
    assert found[0].low < 5 * sign < found[0].high
    assert (found[0].pairs, found[0].fresh) == (18, 0)
    assert {c.verdict for c in found[1:]} == {EQUAL}
    assert f"a {5 * sign:+.1f}" in headline(found)
    small = compare(run(1, new), run(0, old), CompareConfig(least_points=6))
    assert by_method(small)["a"].verdict == UNSURE


def test_few_pairs_have_an_effect_but_no_verdict():
    old, new = ({"a": {"t0": dict.fromkeys(range(5), v)}} for v in (70, 40))
    (change,) = compare(run(1, new), run(0, old))
    assert (change.verdict, change.pairs, change.p) == (FEW, 5, None)
    assert change.effect == pytest.approx(-30)
    assert headline([change]) == (
        "no method could be judged; 1 of 1 methods have a history, 1 of them with too few pairs to be judged"
    )
    other = {m: {t: dict.fromkeys(range(4), v) for t in TASKS} for m, v in (("b", 70),)}
    (few, equal) = compare(run(1, new | other), run(0, old | other))
    assert (few.verdict, equal.verdict) == (FEW, EQUAL)
    assert headline([few, equal]).startswith("no change shown; 2 of 2 methods have a history, 1 of them with too few")


def dropped(values, points, methods):
    """``points`` less in these methods, by more or less from pair to pair."""
    return {
        m: {t: {s: v - (points + s - i % 3 if m in methods else 0) for s, v in seeds.items()}
            for i, (t, seeds) in enumerate(tasks.items())}
        for m, tasks in values.items()
    }  # fmt: skip


@pytest.mark.parametrize("methods", [("a",), ("a", "b", "c", "d")])
def test_two_tasks_and_four_seeds_find_a_large_drop_however_many_methods_have_it(methods):
    old = {m: dict(list(tasks.items())[:2]) for m, tasks in draws(range(4)).items()}
    changes = compare(run(1, dropped(old, 40, methods)), run(0, old))
    assert {c.method for c in changes if c.verdict == REGRESSION} == set(methods)
    assert {c.pairs for c in changes} == {8}
    assert {c.p for c in changes if c.method in methods} == {2**-7}


def test_other_comparisons_of_a_level_that_scatter_do_not_hide_a_drop():
    names = [f"m{i}" for i in range(9)]
    before, after = draws(range(2), 2, methods=names), draws(range(2), 3, methods=names)
    old = draws(range(2), 1, methods=("a",))
    changes = compare(run(1, dropped(old, 8, ("a",)) | after), run(0, old | before))
    assert [c.method for c in changes if c.verdict == REGRESSION] == ["a"]
    assert by_method(changes)["a"].p < 0.001
    equal = compare(run(1, dropped(old, 8, ("a",)) | before), run(0, old | before))
    assert {c.p for c in equal if c.method != "a"} == {None}


def test_levels_that_differ_ask_for_more_pairs():
    import pandas as pd

    old = {m: dict(list(tasks.items())[:2]) for m, tasks in draws(range(4)).items()}
    new = dropped(old, 40, ("a",))
    levels = ("merge", "distill")
    history = pd.concat([run(0, old, level=level) for level in levels])
    assert needed_pairs(0.01, 2) == 9
    both = compare(pd.concat([run(1, new, level=level) for level in levels]), history)
    assert [c.verdict for c in both if c.method == "a"] == [FEW, FEW]
    one = compare(pd.concat([run(1, new, level="merge"), run(1, old, level="distill")]), history)
    assert [(c.level, c.verdict) for c in one if c.method == "a"] == [("merge", REGRESSION), ("distill", EQUAL)]


def test_pairing_prefers_the_same_seed_and_matches_the_rest_one_with_one():
    past = measured(run(0, {"a": {"t0": {0: 10, 1: 11, 2: 12, 3: 13}}}))
    now = measured(run(1, {"a": {"t0": {1: 21, 7: 27, 8: 28, 9: 29, 10: 30}}}))
    pairs = paired(now, past, 4)
    assert list(map(tuple, pairs[["seed", "before", "after", "fresh"]].round(6).to_numpy())) == [
        (1, 11, 21, False),
        (7, 10, 27, True),
        (8, 12, 28, True),
        (9, 13, 29, True),
    ]


def test_the_history_is_the_mean_over_the_last_runs():
    runs = [measured(run(i, {"a": {"t0": {0: v}}})) for i, v in enumerate((90, 50, 60))]
    import pandas as pd

    past = pd.concat(runs)
    now = measured(run(9, {"a": {"t0": {0: 70}}}))
    assert paired(now, past, 2)["before"].tolist() == pytest.approx([55])
    assert paired(now, past, 3)["before"].tolist() == pytest.approx([200 / 3])


def test_means_curves_and_single_experts_are_no_measurements_of_their_own():
    rows = [
        Row(method="ties", metric="accuracy", value=0.7, settings={"task": "t0"}),
        Row(method="ties", metric="accuracy", value=0.7, settings={"task": "mean"}),
        Row(method="expert t0", metric="accuracy", value=0.7, settings={"task": "t0"}),
        Row(method="ties", metric="ece", value=0.1, settings={"task": "t0"}),
        Row(method="ties", metric="seconds", value=9, settings={"task": "t0"}),
        Row(method="ties", metric="accuracy", value=None, settings={"task": "t1"}),
        *(Row(method="transfer", metric="score", value=90 + q, settings={"run": "no source", "target": "x",
                                                                         "queries": q}) for q in (1, 2, 10)),
    ]  # fmt: skip
    facts = RunFacts(run="r", time=datetime(2026, 1, 3, tzinfo=UTC))
    kept = measured(records(facts, [Part("merge", {}, rows)]))
    assert list(zip(kept["name"], kept["points"].round(6), strict=True)) == [
        ("ties", 70),
        ("transfer (no source)", 100),
    ]
    assert json.loads(kept["unit"].iloc[1]) == {"target": "x"}


def test_fresh_seeds_without_a_change_are_not_flagged_and_large_ones_are_found():
    """Noise that all tasks of a seed share: the tasks are not independent, and the verdict must know."""

    def noisy(seeds, seed, shift=0.0):
        rng = np.random.default_rng(seed)
        common = {s: rng.normal(0, 2) for s in seeds}
        values = draws(seeds, seed, shift)
        return {m: {t: {s: v + common[s] for s, v in ss.items()} for t, ss in ts.items()} for m, ts in values.items()}

    flagged = found = 0
    for repeat in range(10):
        history, now = run(0, noisy(range(5), 2 * repeat)), run(1, noisy(range(100, 105), 2 * repeat + 1))
        changes = compare(now, history)
        assert all(c.fresh == c.pairs == 30 for c in changes)
        flagged += any(c.verdict in (REGRESSION, IMPROVEMENT) for c in changes)
        worse = run(2, noisy(range(200, 205), 2 * repeat + 1, shift=-20))
        found += by_method(compare(worse, history))["a"].verdict == REGRESSION
    assert flagged <= 1
    assert found >= 9


def test_the_page_stands_alone_and_shows_every_run(tmp_path):
    import pandas as pd

    history = pd.concat([run(i, draws(range(2))) for i in range(3)])
    now = run(3, draws(range(2), shift=-8))
    changes = compare(now, history)
    page = trend_page("Recurring", {"size": "x"}, now, history, changes, CompareConfig())
    assert page.count("data:image/svg+xml") == 2
    assert "regression" in page
    for text in ("merge", "2026-01-24", "sign-flip", "With fewer than 8 pairs"):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page == trend_page("Recurring", {"size": "x"}, now, history, changes, CompareConfig())
