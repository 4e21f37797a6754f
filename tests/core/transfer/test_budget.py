import pytest

from core.transfer.budget import Budget, BudgetExhausted


def test_counts_exactly_and_refuses_what_does_not_fit():
    budget = Budget("queries", 10)
    budget.spend(7)
    assert (budget.spent, budget.left) == (7, 3)
    with pytest.raises(BudgetExhausted, match="4 queries asked, 3 of 10 left"):
        budget.spend(4)
    assert budget.spent == 7
    budget.spend(3)
    assert not budget.affords(1)


def test_notes_other_units_and_restores():
    budget = Budget("task_examples")
    budget.note("train_steps", 5)
    budget.spend(2)
    other = Budget("queries", 1)
    other.load_state_dict(budget.state_dict())
    assert other.counts == {"task_examples": 2, "train_steps": 5}
    assert other.left == float("inf")


@pytest.mark.parametrize("make", [lambda: Budget("querys"), lambda: Budget("queries", 0)])
def test_bad_budgets(make):
    with pytest.raises(ValueError, match=r"queries|above 0"):
        make()
