"""Score the tuned teachers on the test items that the merged models are scored on."""

from collections.abc import Mapping

import numpy as np
from pydantic import Field
from safetensors.numpy import save_file

from core.config import Config
from core.distill.students import answers
from core.distill.study import Study, StudyConfig
from tasks.evaluate_merges import CORRECT
from tasks.stage import Artifact, Output, stage


class EvaluateTeachersConfig(Config):
    """On which items."""

    studies: dict[str, StudyConfig] = Field(description="task name -> its study")
    test_examples: int = Field(500, ge=20, description="test examples a task")
    seed: int = Field(0, description="draw of test examples")


@stage("evaluate-teachers", modules=["core.distill.study"])
def evaluate_teachers(out: Output, config: EvaluateTeachersConfig, tuned: Mapping[str, Artifact]) -> None:
    """Which test items each teacher gets right."""
    hits = {}
    for name in sorted(tuned):
        study = Study(config.studies[name])
        test = study.task.splits().test.sample(config.test_examples, config.seed)
        hits[name] = (answers(study.teacher("tuned"), test).argmax(1) == np.asarray(test.labels)).astype(np.uint8)
    save_file(hits, out.folder / CORRECT)
    out.metrics({f"accuracy/{name}": float(h.mean()) for name, h in hits.items()})
    out.budget({"task_examples": float(sum(h.size for h in hits.values()))})
