"""Distil one task's tuned teacher into a copy of the common start."""

from pydantic import Field

from core.chain.start import load_start
from core.chain.students import distil_student
from core.config import Config
from core.distill.study import StudyConfig
from tasks.costed import costed
from tasks.stage import Artifact, Output, stage


class DistillStudentConfig(Config):
    """Which teacher teaches how."""

    study: StudyConfig = Field(description="task, sizes, seed, teacher; the student is the start")
    method: str = Field("vanilla_kd", description="distillation")
    max_length: int = Field(64, ge=8, description="longest text in tokens")


@stage("distill-student", modules=["core.chain.students"])
@costed
def distill_student(
    out: Output, config: DistillStudentConfig, start: Artifact, prompts: Artifact, tuned: Artifact
) -> None:
    """The result is an expert of the start: encoder, head, task, and the hash of the weights it began with."""
    begun = load_start(start.folder)
    budget = distil_student(config.study, config.method, begun, out.folder, config.max_length)
    out.facts |= {"structure": begun.structure, "start_sha256": begun.sha256}
    out.budget(budget.counts)
