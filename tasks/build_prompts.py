"""Draw the few-shot splits and write the prompts: what teacher and student will read."""

import json

from pydantic import Field

from core.config import Config
from core.distill.study import Study, StudyConfig
from core.hashing import content_key
from core.state import write_json
from tasks.stage import Artifact, Output, stage
from tasks.try_student import check_methods, check_pool, check_templates, try_student

PROMPTS = "prompts.json"
EXCHANGED = "rows of the published files exchanged"


class PromptsConfig(Config):
    """Which few-shot problem."""

    study: StudyConfig = Field(description="task, sizes, seed, teacher, student")
    methods: tuple[str, ...] = Field((), description="methods to follow; none: there is no student yet")


@stage("build-prompts", modules=["core.distill.study"], keep="nothing")
def build_prompts(out: Output, config: PromptsConfig, data: Artifact) -> None:
    """Refuse what cannot work (missing class, colliding label words, a failing student) before a teacher is tuned."""
    study = Study(config.study)
    few = study.few
    if config.methods:
        check_pool(study)
        check_templates(study)
        check_methods(study, config.methods)
        try_student(study)
    parts = {name: getattr(few, name) for name in ("train", "dev", "pool", "test")}
    filled = {
        kind: study.prompt.fill(kind, "{text}", "{pair}")
        for kind in ("masked", "causal")
        if getattr(study.prompt, kind)
    }
    write_json(
        out.folder / PROMPTS,
        {
            "prompt": study.prompt.model_dump(mode="json"),
            "filled": filled,
            "phrases": study.prompt.phrases,
            "rows": {name: len(part) for name, part in parts.items()},
            "sha256": few.sha256,
            "gold_of_pool": content_key(list(few.pool_gold)),  # what the ceiling learns from
            "replaced": few.replaced,
        },
    )
    out.metrics({f"rows.{name}": len(part) for name, part in parts.items()})
    out.metrics({f"exchanged.{part}": sum(reasons.values()) for part, reasons in few.replaced.items()})
    out.budget({"train_labels": float(len(few.train) + len(few.dev))})


def exchanged_words(prompts: Artifact) -> dict[str, str]:
    """A fact for the report: which rows of LM-BFF's files were exchanged, and why; empty where splits were drawn."""
    replaced = json.loads((prompts.folder / PROMPTS).read_text())["replaced"]
    said = [
        f"{part}: {', '.join(f'{count} {reason}' for reason, count in sorted(reasons.items())) or 'none'}"
        for part, reasons in sorted(replaced.items(), reverse=True)
    ]
    return {EXCHANGED: "; ".join(said)} if said else {}
