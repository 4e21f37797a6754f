import pytest

from core.evaluate.rows import Row
from core.evaluate.verify import DisagreementError, compared


def row(value, seed=0, hardware="there", metric="accuracy", **settings):
    return Row(method="m", metric=metric, value=value, seed=seed, settings=settings, hardware=hardware)


SEEDS = [row(value, seed) for seed, value in enumerate((0.50, 0.52, 0.54))]
REACH = 0.02 * (1 + 1 / 3) ** 0.5 * 14.089  # Student's t of two degrees of freedom at .9975: a hundredth for two rows


def test_equal_values_agree_wherever_they_were_measured():
    assert compared([row(0.5)], [row(0.5, hardware="here")], "here", SEEDS) == "1 rows agree"
    assert compared([row(None)], [row(None)], "here") == "1 rows agree"


def test_on_the_same_hardware_a_value_must_be_equal():
    with pytest.raises(DisagreementError, match=r"stored 0\.5 \(on there\), recomputed 0\.5001 \(on there\)$"):
        compared([row(0.5)], [row(0.5001)], "there", SEEDS)


def test_without_other_seeds_a_value_must_be_equal_on_any_hardware():
    with pytest.raises(DisagreementError, match=r"recomputed 0\.51 \(on here\)$"):
        compared([row(0.5)], [row(0.51)], "here")


def test_on_other_hardware_a_value_may_differ_by_what_seeds_do():
    before = [row(0.5), row(0.9, metric="f1")]
    told = compared(before, [row(0.52 + REACH - 1e-4), row(0.9, metric="f1")], "here", SEEDS)
    assert told.startswith("1 of 2 rows agree; measured on there, here here; 1 differ by no more than seeds do")
    assert told.endswith("largest difference: accuracy 0.5, here 0.8453")
    for value in (0.52 + REACH + 1e-4, 0.52 - REACH - 1e-4):
        with pytest.raises(DisagreementError, match=r"a further seed would lie between 0\.1946 and 0\.8454"):
            compared(before, [row(value), row(0.9, metric="f1")], "here", SEEDS)


def test_what_no_seed_changes_must_be_equal_on_any_hardware():
    counted = [row(50.0, seed, metric="queries") for seed in range(5)]
    with pytest.raises(DisagreementError, match="queries: stored 50"):
        compared(counted[:1], [row(51.0, metric="queries")], "here", counted)


def test_on_other_hardware_too_few_seeds_are_told_and_not_judged():
    assert "1 differ with too few seeds to judge" in compared([row(0.5)], [row(0.9)], "here", SEEDS[:2])
    # rows of other settings are no seeds of this one
    assert "too few seeds" in compared([row(0.5, n=16)], [row(0.9, n=16)], "here", SEEDS)


def test_a_value_that_is_gone_or_undefined_now_disagrees():
    for after in ([], [row(None)]):
        with pytest.raises(DisagreementError, match="recomputed None"):
            compared([row(0.5)], after, "here", SEEDS)
        with pytest.raises(DisagreementError, match="recomputed None"):  # with too few seeds as well
            compared([row(0.5)], after, "here", SEEDS[:2])
    assert "largest difference: accuracy undefined, here 0.5" in compared([row(None)], [row(0.5)], "here", SEEDS)
