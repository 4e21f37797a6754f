# %% [markdown]
# # `core` without Prefect or MLflow
#
# Two experts of one small encoder, a merge that needs no training, a searched merge, and an honest comparison: every
# budget is counted, validation chooses, test is read once at the end. `python docs/example.py` takes about a minute.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np

from core.data.assets import resolve
from core.data.tasks import load_task
from core.evaluate.statistics import bootstrap_mean, mcnemar
from core.merge.baselines import SEARCHES
from core.merge.emfto import EmftoConfig
from core.merge.engine import merge
from core.merge.experts import ExpertConfig, load_expert, train_expert
from core.merge.problem import ProblemConfig, merge_problem
from core.merge.recipe_space import SpaceConfig
from core.merge.solver import SolverConfig
from core.merge.static import STATIC
from core.merge.suite import objectives, predict
from core.models.load import load_encoder
from core.models.train import TrainConfig
from core.transfer.budget import Budget

BASE = os.environ.get("EXAMPLE_BASE", "all-minilm-l6-v2")  # an asset, a folder, or a hub repository
TASKS = ["rt_plot", "chat_reply"]
EPOCHS = int(os.environ.get("EXAMPLE_EPOCHS", "2"))
out = Path(tempfile.mkdtemp(prefix="example-"))

# %% [markdown]
# ## Data
# A task is a small frozen description; its splits carry hashes, and no test text is in train.

# %%
for name in TASKS:
    task = load_task(name)
    splits = task.splits()
    print(f"{task.name}: {len(splits.train)} train, {len(splits.test)} test, labels {', '.join(task.labels)}")
    print("  e.g.", splits.train.texts[0][:90])

# %% [markdown]
# ## Experts
# Fine-tuned from the same base, embeddings frozen; found again by content on the next call.

# %%
base = resolve(BASE).path
training = TrainConfig(lr=1e-4, head_lr=3e-3, epochs=EPOCHS, batch_size=32)
settings = ExpertConfig(examples=600, max_length=48, train=training)
experts = [load_expert(train_expert(load_task(name), base, settings)) for name in TASKS]
for expert in experts:
    print(expert.task, "cost", expert.card["train_labels"], "labels")

# %% [markdown]
# ## A merge without training
# A recipe is mergekit's YAML as a mapping; the engine streams it from files to files and never holds a model.

# %%
recipe = STATIC["ties"].recipe(1.0, base, [e.folder for e in experts])
static = merge(recipe, out / "ties")
print(sorted(p.name for p in static.iterdir()))

# %% [markdown]
# ## A searched merge
# The same in memory, thousands of times: CMA-ES over coefficients per expert and layer group, on validation examples.

# %%
space = SpaceConfig(granularity="blocks:2")  # a coefficient for an expert's lower and one for its upper layers
problem = merge_problem(base, experts, ProblemConfig(space=space, validation_examples=60, batch=12, max_length=48))
budget = Budget("task_examples", 3000)
search = EmftoConfig(solver=SolverConfig(finalists=2))
found = SEARCHES.get("cold_cma")(problem.fitness, problem.space, budget, search, problem.owners, seed=0)
searched = merge(problem.recipe(found.coefficients), out / "searched")
print(f"{len(found.answers)} candidates, {budget}; coefficients\n{found.coefficients}")

# %% [markdown]
# ## What came out
# Test examples, read once. An interval belongs to every mean, a paired test to every difference.


# %%
def correct(folder: Path) -> np.ndarray:
    """Whether each test example of each task was right."""
    encoder = load_encoder(folder)
    encoder.max_length = 48
    predictions = predict(encoder, objectives(encoder, experts, "test", 200))
    return np.concatenate([p.correct for _, p in sorted(predictions.items())])


hits = {"base with the experts' heads": correct(base), "ties": correct(static), "searched": correct(searched)}
for name, values in hits.items():
    mean = bootstrap_mean(values.astype(float))
    print(f"{name:30s} accuracy {mean.mean:.3f}  ({mean.low:.3f} to {mean.high:.3f})")
print("searched against ties: p =", round(mcnemar(hits["searched"], hits["ties"]), 3))
