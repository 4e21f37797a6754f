"""The transfer table: advice for a target knows nothing of what happened there, goals are there without rows."""

import pytest

from benchmarks import transfer_choice as bench
from benchmarks import transfer_measures
from benchmarks.transfer_report import goals
from core.evaluate.rows import Row
from core.transfer.experience import Experience

SIZES = (16, 100)


def rows(change=lambda target, method, score: score) -> list[Row]:
    """Full fine-tuning wins where the probe knows something, the probe where it does not (cola; three in the past)."""
    out = []
    for target in (*bench.TARGETS, *bench.HISTORY):
        empty = target in ("cola", "mrpc", "rte", "qnli")
        for n in SIZES:
            settings = {"source": "minilm", "target": target, "n": n}
            situation = {"majority": 0.7 if empty else 0.5, "probe": 0.6 if empty else 0.8, "classes": 2.0}
            situation |= {"agreement": 0.0 if empty else 0.6, "log_examples": 1.2 if n == 16 else 2.0}
            for seed in bench.SEEDS:
                for name, value in situation.items():
                    out.append(
                        Row(method="situation", metric=f"situation.{name}", value=value, seed=seed, settings=settings)
                    )
                for i, method in enumerate(bench.COMPARED):
                    best = method == ("linear_probe" if empty else "full")
                    score = change(target, method, 0.7 if best else 0.6 - 0.01 * i)
                    out.append(Row(method=method, metric="accuracy", value=score, seed=seed, settings=settings))
                    spent = {"train_examples": 0.0 if method in ("share", "linear_probe") else 240.0}
                    out.append(
                        Row(method=method, metric="seconds", value=1.0, seed=seed, settings=settings, budget=spent)
                    )
    return out


def test_the_recommender_finds_the_best_from_other_targets():
    found = bench.regrets(rows())
    assert len(found["recommender"]) == len(bench.TARGETS) * len(SIZES)
    assert set(found["recommender"].values()) == {0.0}
    assert set(found["history alone"].values()) == {0.0}
    lost = {w[1] for w, v in found["always full"].items() if v > 0}
    assert lost == {"cola"}
    assert found["without history"]["minilm", "cola", 16] > 0, "without mrpc nothing tells that the probe may win"


@pytest.mark.parametrize("target", bench.TARGETS)
def test_outcomes_of_the_target_do_not_reach_its_advice(target):
    def turned(t, method, score):
        return 1.0 - score if t == target else score

    before, after = bench.decisions(rows()), bench.decisions(rows(change=turned))
    assert {w: d for w, d in before.items() if w[1] == target} == {w: d for w, d in after.items() if w[1] == target}


def test_every_goal_is_there_without_rows():
    few, many = goals([]), goals(rows())
    assert len(few) == len(many) == 8
    assert not any(g.holds for g in few)
    assert many[0].value == len(bench.TARGETS) * len(SIZES)
    assert not many[1].holds, "eight cells are not the 36 of the goal"


def test_a_score_is_chosen_on_the_other_targets():
    found = {"a": dict.fromkeys(bench.TARGETS, 0.5), "b": dict.fromkeys(bench.TARGETS, 0.4) | {"cola": 1.0}}
    chosen = bench.chosen_elsewhere(found)
    assert chosen["cola"] == 0.5, "b is best on cola alone, so it is not chosen for cola"
    assert chosen["trec"] == 0.4


def test_choosers_are_judged_on_single_seeds_beside_one_that_knows_the_other_seeds():
    alone = bench.single_seed_regrets(rows())
    assert set(alone[bench.ORACLE].values()) == {0.0}, "the same strategy wins on every seed here"
    assert len(alone["recommender"]) == len(bench.TARGETS) * len(SIZES) * len(bench.SEEDS)
    assert max(alone["always scratch"].values()) > 0.1


def test_the_accuracy_of_another_seed_bounds_what_a_score_can_say():
    def ran(source, seed, value):
        settings = {"source": source, "target": "trec", "n": bench.TAU_SIZE}
        return Row(method="full", metric="accuracy", value=value, seed=seed, settings=settings)

    steady = [ran(f"s{i}", seed, 0.5 + 0.01 * i) for i in range(8) for seed in (0, 1)]
    assert bench.tau_of_other_seeds(steady) == {"trec": pytest.approx(1.0)}
    reversed_ = [ran(f"s{i}", seed, 0.5 + 0.01 * (i if seed else 7 - i)) for i in range(8) for seed in (0, 1)]
    assert bench.tau_of_other_seeds(reversed_)["trec"] < 0
    assert bench.tau_of_other_seeds(steady[:10]) == {}, "fewer than eight sources say nothing"


def test_experiences_say_what_was_trained_and_how_long_texts_were():
    found = {e.strategy: e for e in bench.experiences(rows(), ("trec",))}
    assert (found["share"].passes, found["full"].passes) == (0.0, 240.0)
    long = {"mean_words": 300.0, "pair": 0.0}
    assert (bench._tokens(long), bench._tokens({"mean_words": 12.0, "pair": 1.0})) == (bench.LONGEST, 32)


def test_measures_are_tried_on_targets_that_were_left_out():
    some = rows()
    past = bench.experiences(some, (*bench.TARGETS, *bench.HISTORY))
    named = dict(transfer_measures.sets([e for e in past if e.group in bench.HISTORY]))
    assert named["and mmd"].keys() - named["as it is"].keys() == {"mmd"}
    lost = transfer_measures.lost(past, named["as it is"], bench.TARGETS)
    assert sorted(lost.values()) == sorted(bench.regrets(some)["recommender"].values())


def test_a_measure_that_tells_what_no_other_does_lowers_what_is_lost():
    """Halves of the targets differ in nothing but one distance, and in what is best for them."""

    def happened(group, far, strategy):
        good = (strategy == "full") == far
        return Experience({"mmd": float(far)}, strategy, 0.5 + 0.2 * good, 1.0, group, group)

    past = [happened(f"t{i}", i % 2 == 0, s) for i in range(12) for s in ("full", "share")]
    groups = [f"t{i}" for i in range(12)]
    without, with_it = (transfer_measures.lost(past, m, groups) for m in ({"agreement": 0.25}, {"mmd": 0.1}))
    assert max(with_it.values()) == 0 < max(without.values())
