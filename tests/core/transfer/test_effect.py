"""The effect report on rows whose effect is known by construction."""

import numpy as np
import pytest

from core.evaluate.rows import Row
from core.transfer import effect_page
from core.transfer.effect import effect
from core.transfer.report import render

SIZES = (16, 64, 256, 1024, 4096)


def rows(gain=0.1, seeds=20, sizes=SIZES, tasks=("a", "b"), noise=0.01, method="with", seed=0):
    """``none`` rises by .1 a factor of four; ``method`` lies ``gain`` above it."""
    rng = np.random.default_rng(seed)
    out = []
    for task in tasks:
        for s in range(seeds):
            for i, n in enumerate(sizes):
                base = 0.4 + 0.1 * i
                for name, value in (("none", base), (method, base + gain)):
                    settings, budget = {"task": task, "n": n}, {"train_labels": n}
                    value = value + noise * rng.normal()
                    out.append(
                        Row(method=name, metric="accuracy", value=value, seed=s, settings=settings, budget=budget)
                    )
    return out


def test_gain_harm_and_tests_of_a_true_gain():
    r = effect(rows(), metric="accuracy", without="none", size="n")
    m = r.of("with")
    assert m.pairs == 40
    assert m.gain.mean == pytest.approx(0.1, abs=0.01)
    assert m.gain.low < m.gain.mean < m.gain.high < 0.12
    assert m.p_holm < 1e-6
    assert m.harm == 0
    assert m.area.mean == pytest.approx(0.1, abs=0.005)
    assert m.budget_ratio == pytest.approx(1024 / 4096), "one size earlier is as good"
    assert r.curves["with"][16].mean == pytest.approx(0.5, abs=0.01)


def test_a_harmless_twin_has_chance_harm_and_no_gain():
    m = effect(rows(gain=0, seeds=200, tasks=("a",)), metric="accuracy", without="none", size="n").of("with")
    assert m.gain.low < 0 < m.gain.high
    assert m.harm == pytest.approx(m.harm_chance, abs=0.04)
    assert m.harm_chance == pytest.approx(0.05, abs=0.01)
    assert m.p_wilcoxon > 0.01


def test_chance_harm_is_larger_with_few_twin_runs():
    m = effect(rows(gain=0, seeds=3), metric="accuracy", without="none", size="n").of("with")
    assert 0.2 < m.harm_chance < 0.35


def test_negative_transfer_is_seen():
    m = effect(rows(gain=-0.2), metric="accuracy", without="none", size="n").of("with")
    assert m.harm == 1
    assert m.gain.high < 0
    assert m.budget_ratio is None
    assert m.not_reached == 2


def test_gain_is_taken_at_equal_budget_not_at_the_end():
    """A method that went on for ten times the budget is compared where the twin stopped."""
    out = []
    for s in range(4):
        for spent, value in ((10, 0.5), (100, 0.9)):
            out.append(Row(method="long", metric="accuracy", value=value, seed=s, budget={"queries": spent}))
        out.append(Row(method="none", metric="accuracy", value=0.6, seed=s, budget={"queries": 10}))
    m = effect(out, metric="accuracy", without="none", unit="queries").of("long")
    assert m.gain.mean == pytest.approx(-0.1)
    assert m.budget_ratio == pytest.approx(10)


def free_and_trained(free, sizes=(24, 96), seeds=2):
    """``trained`` rises from .2 to .4; ``as_it_is`` looks at no label and has ``free`` at every size."""
    for s in range(seeds):
        for i, n in enumerate(sizes):
            facts = {"metric": "accuracy", "seed": s, "settings": {"task": "a", "n": n}}
            yield Row(method="trained", value=0.2 + 0.2 * i, budget={"train_labels": n}, **facts)
            yield Row(method="as_it_is", value=free, **facts)


def test_a_run_that_spends_nothing_is_compared_at_what_the_other_spent():
    report = effect(list(free_and_trained(0.5)), metric="accuracy", without="trained", size="n")
    m = report.of("as_it_is")
    assert m.pairs == 2
    assert m.gain.mean == pytest.approx(0.5 - 0.4), "at the largest size"
    assert m.budget_ratio == 0, "the twin's score costs it no label"
    assert m.area.mean == pytest.approx(0.2)
    weak = effect(list(free_and_trained(0.3)), metric="accuracy", without="trained", size="n").of("as_it_is")
    assert (weak.budget_ratio, weak.not_reached) == (None, 1)
    turned = effect(list(free_and_trained(0.5)), metric="accuracy", without="as_it_is", size="n").of("trained")
    assert turned.gain.mean == pytest.approx(-0.1)
    assert turned.budget_ratio is None, "nothing is no measure of a cost"
    shown = dict(zip(effect_page.COLUMNS, effect_page.table(report)[0]))
    assert (shown["method"], shown["budget ratio"], shown["pairs"]) == ("as_it_is", "0", 2)


def test_a_run_that_begins_free_and_goes_on_is_still_cut_where_the_twin_stopped():
    out = []
    for s in range(3):
        for spent, value in ((0, 0.3), (10, 0.5), (100, 0.9)):
            out.append(Row(method="long", metric="accuracy", value=value, seed=s, budget={"queries": spent}))
        out.append(Row(method="none", metric="accuracy", value=0.6, seed=s, budget={"queries": 10}))
    m = effect(out, metric="accuracy", without="none", unit="queries").of("long")
    assert m.gain.mean == pytest.approx(-0.1)


def test_error_metrics_are_turned_round():
    out = [Row(method=m, metric="mse", value=v, seed=s) for s in range(3) for m, v in (("none", 2.0), ("with", 1.5))]
    assert effect(out, metric="mse", without="none").of("with").gain.mean == pytest.approx(0.5)


def test_forgetting_calibration_and_cost():
    out = rows(seeds=3, sizes=(16,), tasks=("a",))
    for s in range(3):
        where = {"seed": s, "settings": {"task": "a", "n": 16}}
        for method, metric, value in (
            ("with", "source_before", 0.9),
            ("with", "source_after", 0.7),
            ("with", "ece", 0.1),
            ("none", "ece", 0.15),
            ("with", "seconds", 4.0),
        ):
            out.append(Row(method=method, metric=metric, value=value, **where))
    m = effect(out, metric="accuracy", without="none", size="n").of("with")
    assert m.forgetting.mean == pytest.approx(0.2)
    assert m.calibration == {"ece": pytest.approx(-0.05)}
    assert m.cost == {"seconds": 4.0}
    assert m.area is None, "one size is no curve"


def test_mcnemar_over_examples():
    rng = np.random.default_rng(0)
    correct = {("none", s): rng.uniform(size=300) < 0.6 for s in range(2)}
    correct |= {("with", s): rng.uniform(size=300) < 0.8 for s in range(2)}
    m = effect(rows(seeds=2), metric="accuracy", without="none", size="n", correct=correct).of("with")
    assert m.mcnemar_p < 1e-4
    difference = np.mean([correct["with", s].mean() - correct["none", s].mean() for s in range(2)])
    assert m.gain_items.mean == pytest.approx(difference)
    assert 0 < m.gain_items.low < difference < m.gain_items.high


def test_undefined_values_are_left_out():
    out = [*rows(seeds=3), Row(method="with", metric="accuracy", value=None, settings={"task": "a", "n": 16})]
    assert effect(out, metric="accuracy", without="none", size="n").of("with").pairs == 6


def test_page_and_dictionary():
    import json

    report = effect([*rows(), *rows(0.02, method="x", seed=1)], metric="accuracy", without="none", size="n")
    page = render("effect", {"metric": report.metric}, effect_page.sections(report))
    assert "Data efficiency" in page
    assert page.count("<img") == 2
    assert json.loads(json.dumps(report.as_dict()))["methods"][0]["method"] == "with"
    assert effect_page.markdown(report).count("\n") == 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: effect(rows(), metric="f1", without="none"), "metrics there: accuracy"),
        (lambda: effect(rows(), metric="accuracy", without="scratch"), "methods there: none, with"),
        (
            lambda: effect(
                [
                    Row(method="none", metric="accuracy", value=0.5),
                    Row(method="with", metric="accuracy", value=0.5, settings={"lr": 1}),
                ],
                metric="accuracy",
                without="none",
            ),
            "ignore",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_score_gain_and_harm_are_those_of_the_largest_size():
    """Means over a curve beside a baseline at its end would be two quantities in one line."""
    out = []
    for r in rows(gain=0, seeds=4, noise=0):
        rises = 0.3 if r.method == "with" and r.settings["n"] < 4096 else 0.0
        out.append(r.model_copy(update={"value": r.value + rises}))
    report = effect(out, metric="accuracy", without="none", size="n")
    m = report.of("with")
    assert m.score.mean == pytest.approx(report.baseline.mean) == pytest.approx(0.8)
    assert m.gain.mean == pytest.approx(0)
    assert m.harm == 0
    assert m.area.mean > 0.2


def test_seeds_do_not_make_more_test_items():
    right, base = np.zeros(200, bool), np.zeros(200, bool)
    right[:9], base[9:12] = True, True
    by_seeds = []
    for seeds in (1, 3, 5):
        correct = {(m, s): v for s in range(seeds) for m, v in (("with", right), ("none", base))}
        found = effect(rows(seeds=5), metric="accuracy", without="none", size="n", correct=correct).of("with")
        by_seeds.append(found.mcnemar_p)
    assert by_seeds == [pytest.approx(0.146, abs=1e-3)] * 3


def test_an_error_is_shown_as_it_is_measured():
    negated = [r.model_copy(update={"metric": "mse", "value": 1 - r.value}) for r in rows(seeds=3)]
    report = effect(negated, metric="mse", without="none", size="n")
    shown = effect_page.table(report)[0]
    assert shown[1].mean > 0 > report.of("with").score.mean
    assert shown[1].low < shown[1].mean < shown[1].high
    assert shown[2].mean == pytest.approx(0.1, abs=0.01)  # the gain: better by so much


@pytest.mark.parametrize(("sizes", "drawn"), [((16, 64), True), ((64,), False)])
def test_one_size_is_no_curve(sizes, drawn):
    report = effect(rows(seeds=3, sizes=sizes), metric="accuracy", without="none", size="n")
    assert ("Data efficiency" in [section.title for section in effect_page.sections(report)]) is drawn


def single(seeds=1, tasks=("a",), **settings):
    """One size, so that what is known rests on seeds and tasks alone."""
    return effect(rows(seeds=seeds, sizes=(16,), tasks=tasks), metric="accuracy", without="none", **settings)


def test_one_run_of_each_gives_a_difference_and_nothing_else():
    rng = np.random.default_rng(0)
    correct = {(m, 0): rng.uniform(size=50) < p for m, p in (("none", 0.5), ("with", 0.6))}
    report = single(correct=correct)
    m = report.of("with")
    assert (report.cells, report.seeds, m.pairs) == (1, 1, 1)
    assert (m.p_wilcoxon, m.p_holm, m.harm, m.harm_chance, m.budget_ratio) == (None,) * 5
    assert m.gain.low is None
    assert m.gain_items.low < m.gain_items.mean < m.gain_items.high
    text = effect_page.sections(report)[0].text
    assert "One seed: no interval over seeds, no Wilcoxon test and no harm" in text
    assert "Harm is the share" not in text
    assert "the budget ratio is undefined" in text


def test_one_seed_over_tasks_has_an_interval_over_tasks_but_no_harm():
    report = single(tasks=("a", "b", "c"))
    m = report.of("with")
    assert (report.cells, report.seeds, m.pairs) == (3, 1, 3)
    assert m.p_wilcoxon == pytest.approx(0.25)
    assert (m.harm, m.harm_chance) == (None, None)
    text = effect_page.sections(report)[0].text
    assert "do not say what another seed would give" in text
    assert "3 pairs give no Wilcoxon p below 0.25" in text
    assert "an interval over them holds the true gain in at most 75 % of cases" in text
    assert "pairs give" not in effect_page.sections(single(seeds=6))[0].text


def test_cells_of_a_single_run_do_not_dilute_harm():
    """Task b has one run a method, far below its twin: nothing says how the twin spreads there."""
    out = [*rows(seeds=3, sizes=(16,), tasks=("a",), noise=0), *rows(-0.3, seeds=1, sizes=(16,), tasks=("b",))]
    m = effect(out, metric="accuracy", without="none", size="n").of("with")
    assert m.harm == 0
    assert m.harm_chance == effect(out[:6], metric="accuracy", without="none", size="n").of("with").harm_chance


def test_one_amount_of_the_budget_gives_no_ratio():
    for gain in (0.1, -0.1):
        m = effect(rows(gain=gain, seeds=4, sizes=(16,)), metric="accuracy", without="none", size="n").of("with")
        assert (m.budget_ratio, m.not_reached) == (None, 0), "it could only be 1, or not reached"
    free = effect(list(free_and_trained(0.5, sizes=(24,))), metric="accuracy", without="trained", size="n")
    assert free.of("as_it_is").budget_ratio == 0


def test_the_ratio_may_follow_a_search_instead_of_the_score():
    """Accuracy is measured once a search; 'with' is at 40 queries where 'none' ends, which was there at 80."""
    curves = {"with": [(20, 0.3), (40, 0.6), (100, 0.8)], "none": [(20, 0.1), (80, 0.5), (100, 0.5)], "other": []}
    out = []
    for method, curve in curves.items():
        out.append(Row(method=method, metric="accuracy", value=0.9, settings={"task": "a"}, budget={"queries": 100}))
        out += [Row(method=method, metric="best so far", value=v, budget={"queries": spent}) for spent, v in curve]
    report = effect(out, metric="accuracy", without="none", unit="queries", reached="best so far")
    assert report.of("with").budget_ratio == pytest.approx(40 / 80)
    assert report.of("with").gain.mean == 0
    assert report.of("other").budget_ratio is None, "it has no curve"
    assert "the final best so far of 'none'" in effect_page.sections(report)[0].text
    plain = effect(out, metric="accuracy", without="none", unit="queries")
    assert plain.of("with").budget_ratio is None


def test_seeds_of_a_search_need_not_be_asked_at_the_same_amounts():
    """The twin ends at a mean of .5; 'with' is above it once both of its seeds are, at 30, and was not at 20."""
    curves = {
        "none": ([(10, 0.1), (50, 0.4)], [(20, 0.2), (60, 0.6)]),
        "with": ([(10, 0.4), (30, 0.9)], [(20, 0.3), (60, 0.9)]),
    }
    out = [
        Row(method=method, metric="accuracy", value=value, seed=seed, budget={"queries": spent})
        for method, seeds in curves.items()
        for seed, curve in enumerate(seeds)
        for spent, value in curve
    ]
    assert effect(out, metric="accuracy", without="none", unit="queries").of("with").budget_ratio == 30 / 60


def test_what_was_never_at_equal_budget_is_named_and_not_compared():
    out = rows(seeds=3, sizes=(16,))
    out += [r.model_copy(update={"method": "gold", "budget": {"train_labels": 500}}) for r in out if r.method == "with"]
    report = effect(out, metric="accuracy", without="none")
    assert [m.method for m in report.methods] == ["with"]
    assert report.unequal == ["gold"]
    assert "Not at equal train_labels, so not compared: gold." in effect_page.sections(report)[0].text
    only = [r for r in out if r.method != "with"]
    with pytest.raises(ValueError, match="'gold' and 'none' were never measured at a common size and budget"):
        effect(only, metric="accuracy", without="none")


def test_tasks_weigh_the_same_in_the_gain_over_items():
    """All ten items of the small task gained, none of the ninety of the other."""
    right = {"small": np.ones(10, bool), "large": np.zeros(90, bool)}
    wrong = {task: np.zeros_like(values) for task, values in right.items()}
    m = single(tasks=("small", "large"), correct={("with", 0): right, ("none", 0): wrong}).of("with")
    assert m.gain_items.mean == pytest.approx(0.5)
    assert m.mcnemar_p == pytest.approx(2 / 2**10)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("rapl", "Energy is measured on the CPU package (RAPL)."),
        ("estimate", "Energy is estimated as CPU seconds times 8 W a core."),
        (
            "estimate; rapl",
            "Energy is estimated as CPU seconds times 8 W a core or measured on the CPU package (RAPL).",
        ),
        (None, "Energy is measured or estimated, which these rows do not say."),
    ],
)
def test_the_page_says_how_energy_came_about(source, words):
    settings = {} if source is None else {"energy_source": source}
    out = rows(seeds=2, sizes=(16,), tasks=("a",))
    out += [Row(method=m, metric="energy_wh", value=v, settings=settings) for m, v in (("none", 2.0), ("with", 3.0))]
    report = effect(out, metric="accuracy", without="none", size="n")
    assert report.energy_source == (source or "")
    section = effect_page.sections(report)[-1]
    assert words in section.text
    assert [row[-1] for row in section.tables[0].rows] == [2.0, 3.0], "the run without transfer first"


def test_an_oracle_that_measured_or_estimated_says_it_too():
    out = rows(seeds=2, sizes=(16,), tasks=("a",))
    told = "measured on the first GPU (NVML), its CPU not counted"
    for oracle, expected in ((told, told), ("test, 40 examples", "")):
        found = effect([*out, Row(method="none", metric="energy_wh", value=2.0, oracle=oracle)], metric="accuracy",
                       without="none", size="n")  # fmt: skip
        assert found.energy_source == expected


def test_how_energy_came_about_makes_no_cell():
    out = [r.model_copy(update={"settings": r.settings | {"energy_source": r.method}}) for r in rows(seeds=3)]
    assert effect(out, metric="accuracy", without="none", size="n").of("with").pairs == 6


def test_a_twin_alone_is_said_to_be_alone():
    report = effect([r for r in rows(seeds=3) if r.method == "none"], metric="accuracy", without="none")
    section = effect_page.sections(report)[0]
    assert section.text == "Only 'none' was run: there is nothing to compare it with."
    assert "Transfer effect" in render("effect", {}, [section])
