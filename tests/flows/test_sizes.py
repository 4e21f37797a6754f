"""Sizes of the merge flows: what a default run shares out among the tasks of its suite."""

from core.merge.suite import load_suite
from flows.evolve_merge import EvolveMergeForm
from flows.merge import MergeForm


def test_a_suite_of_eight_costs_what_one_of_five_does():
    def total(suite):
        form = MergeForm(suite=suite).resolved()
        return len(load_suite(suite)) * form.examples

    assert abs(total("eight") - total("archive")) <= len(load_suite("eight"))


def test_the_search_takes_the_experts_of_the_merge_flow():
    merge, evolve = MergeForm(suite="eight").resolved(), EvolveMergeForm(suite="eight").resolved()
    assert evolve.most_tasks < len(load_suite("eight"))
    assert [evolve.examples, evolve.epochs, evolve.max_length] == [merge.examples, merge.epochs, merge.max_length]


def test_what_is_entered_wins():
    form = MergeForm(suite="eight", examples=77, test_examples=33).resolved()
    assert (form.examples, form.test_examples) == (77, 33)
    assert form.resolved() == form
