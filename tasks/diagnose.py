"""Compare experts before they are merged: conflicts, overlaps and imbalance by layer, as rows and heat maps."""

from collections.abc import Mapping

from pydantic import Field

from core.config import Config
from core.merge.diagnose import ALL, EXPERT_METRICS, PAIR_METRICS
from tasks.merge_static import experts_of
from tasks.stage import Artifact, Output, stage


class DiagnoseConfig(Config):
    """What is compared."""

    density: float = Field(0.2, gt=0, le=1, description="share of the largest changes whose overlap is counted")


@stage("diagnose", modules=["core.merge.diagnose"])
def diagnose_experts(out: Output, config: DiagnoseConfig, base: Artifact, experts: Mapping[str, Artifact]) -> None:
    """Stream base and experts once; rows and a heat map for every measure, whole-model means as metrics."""
    from core.merge.diagnose import diagnose

    found = experts_of(experts)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base.folder),
        "models": [{"model": str(e.folder), "parameters": {"weight": 1.0}} for e in found],
    }
    diagnosis = diagnose(recipe, config.density, names=[e.task for e in found])
    diagnosis.save(out.folder)
    out.rows(diagnosis.rows)
    whole = [r for r in diagnosis.rows if r.settings["layer"] == ALL and r.value is not None]
    for metric in [*PAIR_METRICS, *EXPERT_METRICS, "imbalance"]:
        values = [r.value for r in whole if r.metric == metric]
        if values:
            out.metrics({f"{metric}/mean": sum(values) / len(values), f"{metric}/max": max(values)})
