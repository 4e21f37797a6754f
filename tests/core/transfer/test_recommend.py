"""The recommender finds a rule that experiences hold, says when not to transfer, and knows nothing without any."""

from dataclasses import replace

import numpy as np
import pytest

from core.transfer import recommend
from core.transfer.experience import Experience
from core.transfer.policy import Policy
from core.transfer.recommend import (
    NO_TRANSFER,
    REFERENCE,
    Recommender,
    cold_start,
    rank_sources,
    reference_of,
    regret,
    similarity_rule,
    weighted_tau,
)
from core.transfer.situation import describe
from core.transfer.sources import Source, open_source
from core.transfer.target import Target
from tests.core.transfer import tiny

STRATEGIES_USED = ("share", REFERENCE, "full", NO_TRANSFER)


def experiences(cells=40, noise=0.005, seed=0):
    """Full pays with many examples, sharing with few; scratch pays only where the source is of no use."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(cells):
        n, useful = rng.uniform(1, 3), float(rng.uniform() < 0.7)
        situation = {"log_examples": n, "agreement": useful, "log_parameters": 7.0, "mmd": None}
        gains = {
            "share": 0.1 * (2 - n),
            REFERENCE: 0.0,
            "full": 0.1 * (n - 2),
            NO_TRANSFER: 0.15 if not useful else -0.3,
        }
        for strategy, gain in gains.items():
            passes = 0 if strategy in ("share", REFERENCE) else 3.0 * 10**n
            seconds = {"share": 1.0, REFERENCE: 2.0}.get(strategy, 1e-8 * 1e7 * passes)
            score = 0.7 + gain + noise * rng.normal()
            out.append(Experience(situation, strategy, score, seconds, f"t{i % 4}", str(i), passes=passes))
    return out


def situation(n, useful):
    return {"log_examples": n, "agreement": float(useful), "log_parameters": 7.0, "mmd": None}


@pytest.fixture(scope="module")
def trained():
    return Recommender().fit(experiences())


@pytest.mark.parametrize(("n", "useful", "expected"), [(1.1, 1, "share"), (2.9, 1, "full"), (1.9, 0, NO_TRANSFER)])
def test_finds_the_rule_in_the_history(trained, n, useful, expected):
    r = trained.recommend(situation(n, useful))
    assert r.pick == expected
    assert r.transfer == (expected != NO_TRANSFER)
    assert r.confidence > 0.6
    f = r.of(expected)
    assert f.low <= f.gain <= f.high
    assert r.of(REFERENCE).gain == 0


def test_contributions_name_what_decided(trained):
    r = trained.recommend(situation(2.9, 1))
    assert next(iter(r.contributions)) == "log_examples"
    assert r.contributions["log_examples"] > 0.02


def usually_best(cells=36, seed=0):
    """Full is best wherever the source knows something, but loses much now and then; lora always loses two points."""
    rng, out = np.random.default_rng(seed), []
    for i in range(cells):
        knows = i % 3 > 0
        scores = {"full": 0.8 if knows and i % 4 else 0.5, "lora": 0.78, REFERENCE: 0.6 if knows else 0.8}
        for strategy, score in scores.items():
            seen = {"agreement": 0.5 * knows + 0.05 * rng.uniform(), "log_examples": rng.uniform(1, 3)}
            out.append(Experience(seen, strategy, score, 1.0, f"t{i % 6}", str(i)))
    return out


def test_votes_decide_where_the_least_regret_is_seldom_the_best():
    recommender = Recommender().fit(usually_best())
    r = recommender.recommend({"agreement": 0.52, "log_examples": 2.0})
    assert min(r.forecasts, key=lambda f: f.regret).strategy == "lora"
    assert r.voted
    assert r.pick == "full"
    assert r.of("full").votes > 0.9
    assert sum(f.votes for f in r.forecasts) == pytest.approx(1)
    assert recommender.recommend({"agreement": 0.02, "log_examples": 2.0}).pick == REFERENCE
    assert recommender.recommend({"agreement": 0.52}, ("lora", REFERENCE)).pick == "lora"


def test_a_long_history_is_judged_in_a_few_folds(monkeypatch):
    made = []
    monkeypatch.setattr(recommend, "Policy", lambda *a: made.append(1) or Policy(*a))
    many = [replace(e, group=e.cell) for e in usually_best(cells=60)]
    assert Recommender().fit(many).recommend({"agreement": 0.52, "log_examples": 2.0}).pick == "full"
    assert len(made) <= recommend.MOST_FOLDS + 1


def test_a_target_counts_once_however_often_it_was_met():
    """Many situations of one odd target do not overrule four others."""
    places = np.zeros((20, 1))
    within = np.array([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 12)
    lone = np.array(["a", "a", "b", "b", "c", "c", "d", "d", *["odd"] * 12])
    assert Policy(places, within, lone).votes(np.zeros(1))[0] > 0.7
    assert Policy(places, within, np.arange(20)).votes(np.zeros(1))[0] < 0.5


def test_similar_situations_decide_where_they_advise_clearly_better(trained):
    """Three strategies by two measures are more than one threshold can say."""
    assert not trained.recommend(situation(2.9, 1)).voted


def test_two_targets_are_too_few_for_a_policy():
    few = [e for e in usually_best() if e.group in ("t1", "t2")]
    assert not Recommender().fit(few).recommend({"agreement": 0.52}).voted


def test_cost_is_predicted_and_the_budget_kept(trained):
    r = trained.recommend(situation(2.9, 1), passes=2400)
    assert r.of("full").seconds == pytest.approx(1e-8 * 1e7 * 2400)
    assert r.of("share").seconds == 1.0, "what trains nothing takes as long as ever"
    cheap = trained.recommend(situation(2.9, 1), ("share", "full", REFERENCE), budget_s=20, passes=2400)
    assert cheap.pick in ("share", REFERENCE)
    with pytest.raises(ValueError, match="no strategy fits"):
        trained.recommend(situation(2.9, 1), ("full",), budget_s=1e-3)


def test_without_history_it_says_probe_without_confidence():
    r = Recommender().recommend(situation(2, 1), STRATEGIES_USED)
    assert r.pick == REFERENCE
    assert r.confidence == 0
    assert not r.learned
    assert r.of("full").seconds is None
    assert r.of("full").gain is None, "nothing is no prediction of a gain of zero"


@pytest.mark.parametrize(
    ("strategies", "default"),
    [
        (("scratch", "full"), "full"),
        (("share", "full", "scratch"), "full"),
        (("share", "lora", "scratch"), "lora"),
        (("scratch", "share"), "share"),
        (("scratch", "full", "linear_probe"), "linear_probe"),
        (("scratch", "searched"), "scratch"),
    ],
)
def test_the_default_without_history_does_not_depend_on_order_and_transfers_where_it_can(strategies, default):
    for order in (strategies, strategies[::-1]):
        r = Recommender().recommend(situation(2, 1), order)
        if default != "scratch":
            assert (r.pick, cold_start(order)) == (default, default)
            assert r.transfer
        assert (r.confidence, r.learned, r.reference) == (0, False, None)


def test_regrets_are_against_what_there_is_to_choose_from(trained):
    """Full loses much here, but least of the two that there are."""
    many, few = (trained.recommend(situation(1.1, 1), s) for s in (None, ("full", NO_TRANSFER)))
    assert many.of("full").regret > 0.1
    assert few.of("full").regret < 0.08
    assert few.pick == "full"
    assert few.confidence > many.confidence / 2
    assert not trained.recommend(situation(1.1, 1), ("full", "lora")).learned, "full was never run beside lora"


def test_gains_are_over_a_strategy_that_there_is(trained):
    r = trained.recommend(situation(2.5, 1), ("share", "full", NO_TRANSFER))
    assert r.reference == NO_TRANSFER
    assert r.of(NO_TRANSFER).gain == 0
    assert r.of("full").gain == pytest.approx(0.35, abs=0.1), "full gains .05 there where scratch loses .3"
    assert trained.recommend(situation(2.5, 1)).reference == REFERENCE
    assert reference_of(["lora", "full"]) == "lora"
    assert reference_of([]) is None


def test_other_measures_can_be_tried():
    """What is told by a measure that is not in use is found where it is given."""
    told = [Experience({"mmd": i % 2}, m, 0.5 + 0.2 * ((m == "full") == i % 2), 1.0, f"t{i % 8}", str(i))
            for i in range(16) for m in ("full", "share")]  # fmt: skip
    advice = Recommender(measures={"mmd": 0.2}).fit(told)
    assert [advice.recommend({"mmd": x}).pick for x in (0.0, 1.0)] == ["share", "full"]


def test_unsure_history_gives_low_confidence(trained):
    noisy = Recommender().fit(experiences(cells=12, noise=0.2, seed=3))
    assert noisy.recommend(situation(2.0, 1)).confidence < trained.recommend(situation(2.9, 1)).confidence


def test_same_experiences_same_recommendation_and_rows_keep_them(trained):
    past = [Experience.of(e.row()) for e in experiences()]
    again = Recommender().fit(past).recommend(situation(1.5, 1))
    assert again == trained.recommend(situation(1.5, 1))


def test_unknown_strategy_is_named(trained):
    with pytest.raises(ValueError, match="did you mean 'full'"):
        trained.recommend(situation(1, 1), ("fulll",))


@pytest.mark.parametrize(("agreement", "pick"), [(0.9, "share"), (0.4, "full"), (0.0, NO_TRANSFER), (None, None)])
def test_similarity_rule(agreement, pick):
    assert similarity_rule({"agreement": agreement}) == pick


def test_situation_of_a_real_source(tmp_path):
    source = open_source(str(tiny.build("bert", tmp_path)), "text")
    target = Target("t", tiny.texts(30), "classification", "text", 2, "accuracy").checked()
    s = describe(source, target, ("no", "yes"))
    assert s["log_examples"] == pytest.approx(np.log10(30))
    assert s["mmd"] is None
    assert s["leep"] is None, "the source has no head"
    assert 0 <= s["probe"] <= 1
    assert all(v is None or np.isfinite(v) for v in s.values())
    known = Source(source.name, source.original, train=tiny.texts(20, seed=5), labels=("yes", "no"))
    s = describe(known, target, ("no", "yes"))
    assert s["label_overlap"] == 1
    assert abs(s["mmd"]) < 0.2
    lone = Target("t", tiny.texts(3), "classification", "text", 2, "accuracy").checked()
    assert describe(source, lone)["probe"] is None
    values = Target("t", tiny.texts(9).with_labels([float(i) for i in range(9)]), "regression", "text", 0, "mse")
    assert "agreement" not in describe(source, values.checked())


def test_sources_are_ranked_before_any_fine_tuning(tmp_path):
    """A source whose features hold the class comes first; constant features are undefined and last."""

    class Fixed(Source):
        def features(self, examples):
            return self.table[: len(examples)]

    body = open_source(str(tiny.build("bert", tmp_path)), "text").original
    rng = np.random.default_rng(0)
    target = Target("t", tiny.texts(60), "classification", "text", 2, "accuracy").checked()
    tables = {
        "noise": rng.normal(size=(60, 4)),
        "constant": np.ones((60, 4)),
        "good": rng.normal(size=(60, 4)) + 4 * target.labels[:, None],
    }
    sources = []
    for name, table in tables.items():
        s = Fixed(name, body)
        s.table = table
        sources.append(s)
    ranked = rank_sources(sources, target)
    assert [s.name for s, _ in ranked] == ["good", "noise", "constant"]
    assert ranked[-1][1] is None
    assert regret("noise", {"good": 0.9, "noise": 0.7}) == pytest.approx(0.2)


def test_weighted_tau():
    assert weighted_tau([1, 2, 3], [4, 5, 6]) == 1
    assert weighted_tau([1, 2, 3], [6, 5, 4]) == pytest.approx(-1)
    assert weighted_tau([1, 1, 1], [6, 5, 4]) is None


def test_one_past_transfer_is_no_certainty():
    once = [Experience({"agreement": 0.5}, m, v, 1.0, "t", "c") for m, v in (("full", 0.9), ("share", 0.5))]
    assert Recommender().fit(once).recommend({"agreement": 0.5}).confidence < 0.9


def test_advice_is_never_a_strategy_that_only_the_left_out_target_has_run():
    many = [Experience({"agreement": 0.5}, m, v, 1.0, f"t{i}", f"c{i}") for i in range(5) for m, v in
            (("full", 0.9), ("share", 0.5))]  # fmt: skip
    odd = [Experience({"agreement": 0.5}, m, v, 1.0, "odd", "odd") for m, v in (("full", 0.9), ("lora", 0.2))]
    found = Recommender(width=1.0).fit([*many, *odd])
    assert found._advised(1.0).max() == pytest.approx(0)
