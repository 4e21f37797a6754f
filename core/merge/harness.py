"""Tasks of lm-evaluation-harness as the fitness of merged language models, by name and with the harness's arguments.

    lm-eval:arc_easy,hellaswag?limit=50&num_fewshot=2&metric=acc_norm

The package ``lm_eval`` is optional (``pip install "transferopt[lm-eval]"``). A call scores the first ``limit`` examples
of every task, always the same ones, so a call is what the budget counts.
"""

import importlib.util
import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from pydantic import Field, ValidationError

from core.config import Config
from core.hashing import content_key, sha256_folder
from core.registry import nearest

HARNESS = "lm-eval:"


class Harness(Config):
    """What of the harness is asked."""

    tasks: tuple[str, ...] = Field(min_length=1, description="names of tasks or groups")
    limit: int = Field(100, ge=1, description="examples a task, its first ones")
    num_fewshot: int | None = Field(None, ge=0, description="shown examples; the task's own number when empty")
    metric: str = Field("acc", description="per-example metric in [0, 1]: acc, acc_norm, exact_match ...")
    batch_size: int = Field(16, ge=1, description="texts in a forward")
    include_path: str | None = Field(None, description="folder with tasks of your own, in the harness's YAML")


def harness_named(name: str) -> Harness:
    """Read ``lm-eval:TASK[,TASK][?argument=value&...]``.

    Raises:
        ValueError: no task, an unknown argument or a value that is none; the package is not installed.
    """
    listed, _, asked = name.removeprefix(HARNESS).partition("?")
    arguments, known = dict(parse_qsl(asked, keep_blank_values=True)), sorted(Harness.model_fields.keys() - {"tasks"})
    for key in sorted(arguments.keys() - set(known)):
        raise ValueError(f"fitness {name!r}: unknown argument {key!r}{nearest(key, known)} Allowed: {', '.join(known)}")
    try:
        found = Harness(tasks=tuple(t.strip() for t in listed.split(",") if t.strip()), **arguments)
    except ValidationError as error:
        said = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise ValueError(f"fitness {name!r}: {said}; write {HARNESS}arc_easy?limit=50&num_fewshot=2") from None
    if found.include_path is not None and not Path(found.include_path).is_dir():
        raise ValueError(f"fitness {name!r}: include_path {found.include_path!r} is no folder")
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(f'fitness {name!r} needs lm-evaluation-harness: pip install "transferopt[lm-eval]"')
    return found


def harness_version(name: str) -> str:
    """Hash of what decides the scores beside the model: arguments, the package's version, own tasks."""
    asked = harness_named(name)
    own = sha256_folder(asked.include_path) if asked.include_path else ""
    return content_key("lm-eval", asked, version("lm_eval"), own)


def harness_score(name: str) -> Callable[[Any, Any], np.ndarray]:
    """``score(model, tokenizer)``: one value for each example of every task, tasks in the order of their names.

    Raises:
        ValueError: see :func:`harness_named`; a task that the harness does not have (the nearest is named).
    """
    asked = harness_named(name)
    known = _tasks(asked.include_path)
    for task in asked.tasks:
        if task not in known.all_tasks:
            raise ValueError(f"fitness {name!r}: lm-eval has no task {task!r}{nearest(task, known.all_tasks)}")

    def score(model: Any, tokenizer: Any) -> np.ndarray:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        if not hasattr(model, "generate"):
            raise ValueError(f"fitness {name!r}: tasks of lm-eval are for causal language models, this base is none")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with redirect_stderr(StringIO()):  # three bars a candidate; the search has its own
            found = lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=asked.batch_size),
                tasks=list(asked.tasks),
                num_fewshot=asked.num_fewshot,
                limit=asked.limit,
                task_manager=known,
                log_samples=True,
                bootstrap_iters=0,
                random_seed=None,  # the global generators are the user's
                numpy_random_seed=None,
                torch_random_seed=None,
            )
        return np.concatenate(
            [_values(name, found["samples"][task], asked.metric) for task in sorted(found["samples"])]
        )

    return score


def _values(name: str, samples: list[dict[str, Any]], metric: str) -> np.ndarray:
    """The metric of every example, in the order of the data."""
    ordered = sorted(samples, key=lambda s: s["doc_id"])
    if metric not in ordered[0]:
        given = ordered[0].get("metrics", [])
        raise ValueError(
            f"fitness {name!r}: no metric {metric!r}{nearest(metric, given)} The task has {', '.join(given)}"
        )
    return np.array([float(s[metric]) for s in ordered])


@cache
def _tasks(folder: str | None) -> Any:
    """The harness's index of tasks; reading it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)
