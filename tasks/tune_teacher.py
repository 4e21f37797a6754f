"""Tune the teacher on the few labelled examples and look at what it knows: zero-shot, calibrated, tuned."""

from pydantic import Field

from core.config import Config
from core.distill.study import Study, StudyConfig
from core.state import write_json
from core.transfer.budget import Budget
from tasks.costed import costed
from tasks.stage import Artifact, Output, stage


class TuneConfig(Config):
    """Which teacher on which few examples."""

    study: StudyConfig = Field(description="task, sizes, seed, teacher, student")


@stage("tune-teacher", modules=["core.distill.study"])
@costed
def tune_teacher(out: Output, config: TuneConfig, prompts: Artifact, teacher: Artifact) -> None:
    """Its weights stay in the cache under the hash that this stage writes down."""
    study, budget = Study(config.study), Budget("train_steps")
    study.teacher("tuned", budget)
    write_json(out.folder / "teacher.json", {"identity": study.identity("tuned"), "asset": config.study.teacher.asset})
    out.budget(budget.counts)
