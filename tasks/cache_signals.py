"""Compute what the teacher says about every text of the transfer set, once, and ask whether it may teach."""

import numpy as np
from pydantic import Field

from core.config import Config
from core.distill.study import Study, StudyConfig
from core.models.prompt import log_softmax
from core.state import write_json
from tasks.costed import costed
from tasks.stage import Artifact, Output, stage

HEAD_ROOM, TEACHERS = "head_room.json", "teachers.npz"
CALIBRATIONS = ("raw", "content_free", "pool")


class SignalsConfig(Config):
    """For which methods."""

    study: StudyConfig = Field(description="task, sizes, seed, teacher, student")
    methods: tuple[str, ...] = Field(description="methods whose signals are cached")
    zero_shot: bool = Field(True, description="also score the teacher before tuning, raw and calibrated")


@stage("cache-signals", modules=["core.distill.study"])
@costed
def cache_signals(out: Output, config: SignalsConfig, prompts: Artifact, tuned: Artifact, student: Artifact) -> None:
    """Signals for the methods, the teacher's answers on test, and the head-room check on dev and pool."""
    study = Study(config.study)
    for method in config.methods:
        study.cache_signals(method)
    answers = {"teacher tuned": study.teacher_answers("tuned").test}
    if config.zero_shot:
        for calibration in CALIBRATIONS:
            answers[f"teacher zero-shot, {calibration}"] = study.teacher_answers("pretrained", calibration).test
    np.savez(out.folder / TEACHERS, **{name: log_softmax(logits) for name, logits in answers.items()})
    room = study.head_room()
    write_json(out.folder / HEAD_ROOM, vars(room))
    out.metrics({f"head_room.{name}": float(value) for name, value in vars(room).items()})
