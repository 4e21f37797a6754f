"""Flow evolve-merge on a causal language model: adapters trained in the flow beside one that was trained elsewhere."""

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from core.merge.adapter_experts import train_adapter
from core.merge.language_package import LanguagePackage
from core.merge.recipe import load_recipe
from core.packages import open_package
from core.state import Cache
from flows.cli import app
from flows.evolve_merge import EvolveMergeForm
from flows.runtime import FLOWS
from tasks import mlflow_store, register_model, serving
from tasks.hits import Hits
from tasks.stage import Artifact
from tests import tiny_language as tl

TASKS = ("mood", "light")
FLOW = FLOWS.get("evolve-merge")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Base, task files, and an adapter for the task that is written out."""
    root = tmp_path_factory.mktemp("language-merge")
    base, files = tl.base_folder(root / "base"), {name: tl.task_file(root, name) for name in tl.SIGNS}
    adapter = train_adapter(tl.task(root, "light"), base, tl.CONFIG, Cache(root / "cache"))
    (root / "mine").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # as peft leaves it, without our card
        (root / "mine" / name).write_bytes((adapter / name).read_bytes())
    return base, files, root / "mine"


def form(given, **more):
    base, files, adapter = given
    asked = {"tasks": (files["mood"], files["part"]), "experts": {files["light"]: str(adapter)}, "budget": 700}
    return EvolveMergeForm(**{"size": "smoke", "base": str(base), "granularity": "layers", **asked, **more})


@pytest.fixture(scope="module")
def done(given):
    return FLOW.run(form(given))


def value(rows, method, task="mean", metric="accuracy"):
    return next(r.value for r in rows if (r.method, r.metric, r.settings["task"]) == (method, metric, task))


def test_searches_and_static_merges_stand_beside_base_and_experts(done):
    methods = {r.method for r in done.rows}
    assert {"base", "individual experts", "expert light", "average", "emfto", "cold_cma"} <= methods
    assert not any("aligned" in m or "head" in m for m in methods)
    assert value(done.rows, "expert light", "light") > 0.8 > value(done.rows, "base", "light")
    assert value(done.rows, "individual experts", metric="normalised") == 100
    spent = next(r.budget for r in done.rows if r.method == "emfto")
    assert 0 < spent["task_examples"] <= 700
    assert spent["train_labels"] == 2 * 16, "labels of the given adapter were not spent here"
    assert {r.settings["task"] for r in done.rows} == {"mood", "part", "light", "mean"}


def test_the_page_says_what_was_merged_and_where_it_lies(done):
    page = (done.artifact.folder / "report.html").read_text()
    assert "label word of highest likelihood" in page
    assert "heads aligned" not in page
    assert "transferopt predict" in page
    assert "registered as evolved-language-model" in page


def package() -> Path:
    from core.state import home

    return max(home().rglob("package-language-merge/*/language.json"), key=lambda p: p.stat().st_mtime).parent


def test_the_merged_model_opens_in_transformers_and_answers_every_task(done, given):
    folder = package()
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    packaged = LanguagePackage(folder)
    assert set(packaged.tasks) == {"mood", "part", "light"}
    assert packaged.predict(["the movie was fun"], task="mood")[0].label in tl.SIGNS["mood"]
    (answer,) = packaged.predict(["the scene was bright"], task="light")
    assert answer.label
    assert 0 < answer.probability <= 1
    with pytest.raises(ValueError, match="did you mean 'mood'"):
        packaged.predict(["x"], task="mod")
    told = CliRunner().invoke(app, ["predict", str(folder), "the movie was fun", "--task", "mood"])
    assert told.exit_code == 0, told.output
    assert told.output.split()[0] in tl.SIGNS["mood"]


def test_the_merged_model_is_registered_and_served(done):
    folder = serving.package_of("evolved-language-model")
    texts = ["the movie was fun", "the scene was bright"]
    expected = [open_package(folder).predict([text], task=task)[0] for text, task in zip(texts, TASKS, strict=True)]
    served = mlflow.pyfunc.load_model("models:/evolved-language-model@champion")
    answers = served.predict(pd.DataFrame({"text": texts, "task": list(TASKS)}))
    assert answers["label"].tolist() == [e.label for e in expected]
    version = mlflow_store.client().get_model_version_by_alias("evolved-language-model", "champion")
    assert set(json.loads(version.tags["accuracies"])) == {"mood", "part", "light"}
    assert set(Hits.of(version.tags)) == {"mood", "part", "light"}


def test_a_model_above_the_limit_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(register_model, "LIMIT_GB", 1e-6)
    artifact = Artifact(name="package-language-merge", path=str(package()), sha256="x")
    told = register_model.register_model("large", artifact, artifact, "average", {})
    assert told.startswith("not registered: ")
    assert "at most 1e-06 GB" in told


def test_the_recipe_names_adapters_of_the_base(done):
    from core.state import home

    recipes = [load_recipe(p) for p in home().rglob("execute-recipe/*/recipe.yaml")]
    named = [m.model for recipe in recipes for m in recipe.models]
    assert named
    assert all("+" in str(name) for name in named)


def test_the_smoke_plan_needs_no_run(given, home):
    stages = {line.stage for line in FLOW.plan(form(given))}
    assert {"train-adapter", "take-adapter", "evaluate-language-merges", "package-language-merge"} <= stages
    assert not stages & {"train-expert", "take-expert", "align-heads", "package-merge", "plain-encoder"}


def test_what_cannot_apply_is_refused_in_the_plan(given, tmp_path):
    base, files, _ = given
    with pytest.raises(ValueError, match="log_examples quotes"):
        FLOW.plan(form(given, log_examples=True))
    bare = tmp_path / "bare.yaml"
    bare.write_text(Path(files["mood"]).read_text().replace("causal_template", "template"))
    with pytest.raises(ValueError, match="'mood' has no causal_template"):
        FLOW.plan(form(given, tasks=(str(bare), files["part"]), experts={}))
    with pytest.raises(ValueError, match="layers"):
        FLOW.plan(form(given, granularity="blocks:9"))
    assert EvolveMergeForm(base=str(base)).resolved().suite == "language"
    assert EvolveMergeForm(base=str(base)).resolved().budget < EvolveMergeForm().resolved().budget


def test_an_adapter_of_another_base_is_refused_before_training(given, tmp_path):
    other = tl.base_folder(tmp_path / "wider", width=32)
    with pytest.raises(ValueError, match="it belongs to another model"):
        FLOW.run(form((other, *given[1:])))
    with pytest.raises(ValueError, match="is no adapter"):
        FLOW.run(form((*given[:2], given[0])))


def test_a_function_of_ones_own_is_searched_for_instead(done, given, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n\n\n"
        "def score(model, tokenizer):\n"
        '    """Probability that five texts go on with "bright"."""\n'
        '    ids = torch.tensor(tokenizer(["the scene was"] * 5)["input_ids"])\n'
        '    word = tokenizer("bright")["input_ids"][-1]\n'
        "    with torch.inference_mode():\n"
        "        return model(ids).logits[:, -1].float().softmax(-1)[:, word].numpy()\n"
    )
    own = FLOW.run(form(given, fitness=f"{file}:score", searches=("emfto",), budget=150))
    spent = next(r.budget for r in own.rows if r.method == "emfto")["task_examples"]
    assert 0 < spent <= 150
    assert spent % 5 == 0, "every call is charged with all five"
    assert value(own.rows, "average") == value(done.rows, "average"), "tested on the tasks as ever"
    with pytest.raises(ValueError, match="give module:function"):
        FLOW.plan(form(given, fitness="score"))
    with pytest.raises(ValueError, match="front is over tasks"):
        form(given, fitness=f"{file}:score", front=3)
