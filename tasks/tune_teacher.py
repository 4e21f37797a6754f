"""Tune the teacher on the few labelled examples."""

import json
import math
from pathlib import Path

from pydantic import Field, field_validator

from core.config import Config
from core.distill.study import Study, StudyConfig
from core.distill.teachers import split_shown
from core.state import MANIFEST, write_json
from tasks.costed import costed
from tasks.stage import Artifact, Output, stage

KIND = "teachers"  # of the cache's folders in which tuned weights lie
DECIDING = ("task", "k", "n", "seed", "splits", "teacher")


class TuneConfig(Config):
    """Which teacher on which few examples."""

    study: StudyConfig = Field(description="task, sizes, seed, teacher; what else a study says does not change tuning")

    @field_validator("study")
    @classmethod
    def _what_decides(cls, study: StudyConfig) -> StudyConfig:
        """Without what tuning does not read: another student or number of steps finds the stage in the cache."""
        return StudyConfig(**{name: getattr(study, name) for name in DECIDING})


@stage("tune-teacher", modules=["core.distill.study"])
@costed
def tune_teacher(out: Output, config: TuneConfig, prompts: Artifact, teacher: Artifact) -> None:
    """Its weights stay in the cache under the hash that this stage writes down; where they are, it is not loaded."""
    study = Study(config.study)
    identity = study.identity("tuned")
    folder = study.cache.find(KIND, identity)
    if folder is None:
        study.teacher("tuned")
        folder = study.cache.path(KIND, identity)
    write_json(out.folder / "teacher.json", {"identity": identity, "asset": config.study.teacher.asset})
    out.budget(tuning_budget(study, folder))


def tuning_budget(study: Study, folder: Path) -> dict[str, float]:
    """What tuning the weights in ``folder`` took, whichever run did it: its steps are noted beside them."""
    steps = json.loads((folder / MANIFEST).read_text())["facts"]["steps"]
    tuned_on = len(split_shown(study.few.train, study.config.teacher.demonstrations)[1])
    epoch = math.ceil(tuned_on / study.config.teacher.train.batch_size)
    return {
        "train_steps": float(steps),
        "train_examples": float(round(steps / epoch * tuned_on)),
        "train_labels": float(tuned_on),
    }
