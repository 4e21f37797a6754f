"""What a flow refuses before any work: each wrong input names itself, in the plan already."""

import pytest

from core.data.tasks import load_task
from core.distill.students import student_of
from core.merge.choice_search import choice_start_cost
from core.merge.solver import SCALES
from core.transfer.experiment import DataSteps
from flows.distill import readable
from flows.evolve_merge import check_budget, space_of
from flows.runtime import FLOWS
from flows.transfer import TransferForm, baseline, examples_there
from tests.core.transfer import tiny

ROWS = "text,label\n" + "".join(f"word {i} {('good', 'bad')[i % 2]},{('yes', 'no')[i % 2]}\n" for i in range(40))


@pytest.fixture
def tasks(tmp_path):
    """Paths of task files: two of classes, one of numbers, one scored by an unknown metric."""
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "numbers.csv").write_text("text,label\n" + "".join(f"word {i},{i / 7}\n" for i in range(40)))
    classes = "kind: single\nsource: {path: rows.csv}\nlabels: ['yes', 'no']\nmetric: "
    contents = {
        "a": f"{classes}accuracy\n",
        "b": f"{classes}mcc\n",
        "typo": f"{classes}acuracy\n",
        "numbers": "kind: regression\nsource: {path: numbers.csv}\nmetric: pearson\n",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    return {name: str(tmp_path / f"{name}.yaml") for name in contents}


def refused(flow, **values):
    """The message of the refusal of a plan."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the callers look at the message)
        FLOWS.get(flow).plan(FLOWS.get(flow).form(size="smoke", **values))
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": "lgme"}, "did you mean 'logme'"),
        ({"clean": ("duplicate",)}, "did you mean 'duplicates'"),
        ({"normalise": ("lowr",)}, "did you mean 'lower'"),
        ({"augment": ("word_drp",)}, "did you mean 'word_drop'"),
        ({"sources": ("./none",)}, "none does not exist"),
        ({"sources": ()}, "sources is empty; give at least one model"),
        ({"strategies": ("full", "full")}, "strategies are full, full; give at least two different ones"),
    ],
)
def test_transfer_names_what_it_does_not_know(tasks, values, message):
    assert message in refused("transfer", target=tasks["a"], **values)


def test_transfer_looks_at_the_metric_and_at_what_the_source_reads(tasks):
    assert "did you mean 'accuracy'" in refused("transfer", target=tasks["typo"])
    assert "give an image model" in refused("transfer", target="digits")


def test_transfer_needs_an_example_a_class_at_every_size_and_a_metric_of_many_classes(tmp_path):
    lines = [f"word {i},{'abcdefghijkl'[i % 12]}" for i in range(240)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    content = f"kind: single\nsource: {{path: rows.csv}}\nlabels: {list('abcdefghijkl')}\nmetric: "
    for metric in ("accuracy", "f1"):
        (tmp_path / f"{metric}.yaml").write_text(f"{content}{metric}\n")
    few = refused("transfer", target=str(tmp_path / "accuracy.yaml"), examples=24, curve=3)
    assert "examples=24 with curve=3 begin at 8 training examples" in few
    assert "metric f1 does not fit answers that are 12 classes" in refused("transfer", target=str(tmp_path / "f1.yaml"))


def test_distillation_refuses_what_its_models_cannot_do(tasks, tmp_path):
    bert, t5 = (str(tiny.build(kind, tmp_path / kind)) for kind in ("bert", "t5"))
    values = {"task": tasks["a"], "teacher": bert}
    assert "is a sentence encoder and reads one text" in refused("distill", student=bert, demonstrations=1, **values)
    assert "t5 is a sequence-to-sequence model" in refused("distill", student=t5, **values)
    assert "n\n  Input should be greater than 0" in refused("distill", student=bert, n=0, **values)
    assert "did you mean 'linear_probe'" in refused("distill", methods=("linear_prob",), **values)


@pytest.mark.parametrize("kind", ["DistilBert", "Electra"])
def test_a_masked_model_answers_at_its_mask_even_if_its_head_is_in_parts(kind, tmp_path):
    import transformers

    config = getattr(transformers, f"{kind}Config")(architectures=[f"{kind}ForMaskedLM"])
    config.save_pretrained(tmp_path)
    assert readable(student_of(str(tmp_path))).kind == "masked"


def test_distillation_and_search_refuse_other_kinds_of_tasks(tasks):
    assert "is for texts with class labels" in refused("distill", task=tasks["numbers"])
    assert "training cells needs images" in refused("search", data=tasks["a"])


def test_a_merge_needs_two_tasks(tasks):
    assert "at least two tasks, got " in refused("merge", tasks=(tasks["a"],))


def test_evolution_knows_its_granularities_and_the_names_of_own_tasks(tasks):
    assert "allowed: global, kinds, layers, blocks:K" in refused("evolve-merge", granularity="block")
    own = {"tasks": (tasks["a"], tasks["b"]), "front": 2}
    assert "Tasks: a, b" in refused("evolve-merge", **own, preference={"a.yaml": 3.0})
    flow = FLOWS.get("evolve-merge")
    assert flow.plan(flow.form(size="smoke", **own, preference={"a": 3.0}))


def test_evolution_knows_its_components_and_what_shares_go_with(tasks):
    assert "unknown merge search 'emfo', did you mean 'emfto'" in refused("evolve-merge", searches=("emfo",))
    assert "unknown component 'tsv', did you mean 'tsv_m'" in refused("evolve-merge", choices=("tsv", "raw"))
    assert "two or more different components, got raw" in refused("evolve-merge", choices=("raw",))
    assert "give forms_share=0" in refused("evolve-merge", form="simplex")
    shares = {"form": "simplex", "forms_share": 0}
    assert "search choices has signed coefficients" in refused("evolve-merge", **shares, searches=("choices",))
    form = FLOWS.get("evolve-merge").form(size="smoke", tasks=(tasks["a"], tasks["b"]), **shares)
    for basis, given, total in (("raw", None, 1.0), ("tsv_m", None, 2.0), ("tsv_m", 2.6, 2.6)):
        own = form.model_copy(update={"basis": basis, "total": given}).resolved()
        assert space_of(own).total == total


def test_tasks_of_the_harness_are_for_language_models(tasks, monkeypatch):
    own = {"tasks": (tasks["a"], tasks["b"]), "fitness": "lm-eval:piqa?limit=8"}
    assert "tasks of lm-eval are for causal language models" in refused("evolve-merge", **own)


def test_a_search_among_components_needs_a_larger_budget(tasks):
    kind, names = FLOWS.get("evolve-merge").form, (tasks["a"], tasks["b"])
    values = {"size": "smoke", "batch": 4, "choices": ("raw", "ties@0.2")}
    validation = sum(len(load_task(name).splits().validation) for name in names)
    least = choice_start_cost(values["choices"], 2 * 4, validation) + 2 * 4 + 2 * validation
    check_budget(kind(**values, budget=least, searches=("choices",)).resolved(), names)
    check_budget(kind(**values, budget=least - 1).resolved(), names)
    with pytest.raises(ValueError, match=f"search choices takes at least {least}"):
        check_budget(kind(**values, budget=least - 1, searches=("choices",)).resolved(), names)


@pytest.mark.parametrize(("granularity", "fits"), [("blocks:3", False), ("blocks:2", True), ("layers", True)])
def test_evolution_looks_at_the_depth_of_the_base_before_experts_are_trained(tasks, tmp_path, granularity, fits):
    values = {"base": str(tiny.build("bert", tmp_path)), "tasks": (tasks["a"], tasks["b"]), "granularity": granularity}
    if fits:
        flow = FLOWS.get("evolve-merge")
        assert flow.plan(flow.form(size="smoke", **values))
    else:
        assert "'blocks:3': the model has 2 layers; set granularity=blocks:2 at most" in refused(
            "evolve-merge", **values
        )


def test_evolution_looks_at_its_budget_before_experts_are_trained(tasks):
    kind = FLOWS.get("evolve-merge").form
    values = {"size": "smoke", "batch": 4, "basis": "tsv_m"}
    names = (tasks["a"], tasks["b"])
    validation = sum(len(load_task(name).splits().validation) for name in names)
    start, candidate, finalists = len(SCALES["tsv_m"]) * 2 * 4 + validation, 2 * 4, 2 * validation
    least = start + candidate + finalists
    check_budget(kind(**values, budget=least).resolved(), names)
    short = f"budget={least - 1} leaves {least - 1} .* takes at least {least}: .* raise budget"
    with pytest.raises(ValueError, match=short):
        check_budget(kind(**values, budget=least - 1).resolved(), names)
    with pytest.raises(ValueError, match="after 2 points of the front"):
        check_budget(kind(**values, budget=least + validation, front=2).resolved(), names)


def test_a_transfer_counts_no_examples_that_are_not_there(tasks):
    steps = DataSteps()
    assert examples_there(TransferForm(examples=10), tasks["a"], steps) == 10
    there = len(load_task(tasks["a"]).splits().train)
    assert examples_there(TransferForm(examples=1000), tasks["a"], steps) == there < 40


def test_gains_are_over_training_without_transfer_where_it_was_run():
    assert baseline(("full", "linear_probe", "scratch")) == "scratch"
    assert baseline(("full", "linear_probe")) == "linear_probe"
    assert baseline(("full", "lora")) == "full"
