"""Train one student by one method; the result is a folder that serves."""

from pydantic import Field

from core.config import Config
from core.distill.export import export_student
from core.distill.study import Study, StudyConfig
from tasks.costed import costed
from tasks.stage import Artifact, Output, stage


class DistilConfig(Config):
    """Which method."""

    study: StudyConfig = Field(description="task, sizes, seed, teacher, student")
    method: str = Field(description="method of the table")


@stage("distill", modules=["core.distill.study", "core.distill.export"])
@costed
def distill(out: Output, config: DistilConfig, signals: Artifact, student: Artifact) -> None:
    """Reads cached signals only: the teacher is not loaded."""
    study = Study(config.study)
    model, budget, facts = study.train(config.method, folder=out.folder)
    export_student(model, out.folder, study.task.labels, study.task.name, study.task.kind == "pair")
    out.metrics(facts)
    out.facts["gate"] = facts
    out.budget(budget.counts)
