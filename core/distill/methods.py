"""The methods of the table: baselines, Prompt-Distiller, its ablations, and the ceiling. One line each.

What Prompt-Distiller adds to vanilla KD was chosen on development tasks (``docs/content.md`` has the figures): phrases
of the pool were ahead in every comparison; the cosine to the teacher's representation was level in four (+0.1 points),
and with phrases 0.2 ahead on the mean; cross-sample InfoNCE was 0.2 points behind in its only one.
"""

from types import MappingProxyType
from typing import Literal

from pydantic import Field

from core.config import Config
from core.distill.distiller import SCHEDULE, DistillConfig
from core.distill.interface import LossSpec
from core.distill.transfer_set import PhraseConfig


class Method(Config):
    """How a student comes about."""

    summary: str = Field(description="one line")
    kind: Literal["probe", "random_head", "label_words", "setfit", "distill", "self_training", "gold"] = "distill"
    distill: DistillConfig | None = Field(None, description="objective and schedule")
    gate: bool = Field(False, description="ask the head-room check first")
    labels: bool = Field(True, description="use the K labels per class")
    rounds: int = Field(1, ge=1, description="self-training rounds")


def _terms(*names: str | LossSpec) -> tuple[LossSpec, ...]:
    return tuple(n if isinstance(n, LossSpec) else LossSpec(name=n) for n in names)


KD = DistillConfig(losses=_terms("task_ce", "kd_tuned"))
CONTRAST = LossSpec(name="infonce", weight=0.3)
REPRESENTATION = LossSpec(name="embedding", weight=2.0)


PHRASES = PhraseConfig()


def _kd_and(*extra: LossSpec, **changes) -> DistillConfig:
    return DistillConfig(losses=(*KD.losses, *extra), **changes)


PROMPT_DISTILLER = _kd_and(REPRESENTATION, phrases=PHRASES)
METHODS = MappingProxyType(
    {
        "linear_probe": Method(summary="logistic regression on frozen embeddings", kind="probe"),
        "random_head": Method(summary="student fine-tuned with a random head", kind="random_head"),
        "label_words": Method(summary="student fine-tuned with a label-word head", kind="label_words"),
        "setfit": Method(summary="SetFit: contrastive pairs, then a logistic head", kind="setfit"),
        "self_training": Method(
            summary="student taught by itself on the pool", kind="self_training", distill=KD, rounds=2
        ),
        "vanilla_kd": Method(summary="cross-entropy and KD on labelled texts and pool", distill=KD),
        "pkd": Method(summary="vanilla KD and PKD", distill=_kd_and(LossSpec(name="pkd", weight=1.0))),
        "tinybert": Method(summary="vanilla KD and TinyBERT's states", distill=_kd_and(LossSpec(name="tinybert"))),
        "crd": Method(summary="vanilla KD and CRD", distill=_kd_and(LossSpec(name="crd", weight=0.2))),
        "prompt_distiller": Method(
            summary="KD and the teacher's representation on labelled texts, pool and its phrases, behind the gate",
            distill=PROMPT_DISTILLER,
            gate=True,
        ),
        "no_contrast": Method(
            summary="Prompt-Distiller without representation term", distill=_kd_and(phrases=PHRASES), gate=True
        ),
        "no_phrases": Method(
            summary="Prompt-Distiller without phrases of the pool", distill=_kd_and(REPRESENTATION), gate=True
        ),
        "no_unlabelled": Method(
            summary="Prompt-Distiller without unlabelled texts",
            distill=DistillConfig(losses=PROMPT_DISTILLER.losses, unlabelled=False),
        ),
        "no_contrast_no_unlabelled": Method(
            summary="KD on the labelled texts alone", distill=DistillConfig(losses=KD.losses, unlabelled=False)
        ),
        "contrast_literal": Method(
            summary="vanilla KD and the literal contrast", distill=_kd_and(LossSpec(name="cpd_literal", weight=0.2))
        ),
        "contrast_infonce": Method(summary="vanilla KD and cross-sample InfoNCE", distill=_kd_and(CONTRAST)),
        "contrast_dual": Method(
            summary="vanilla KD and dual contrast with hard negatives",
            distill=_kd_and(LossSpec(name="dual", weight=0.2)),
        ),
        "second_teacher": Method(
            summary="tuned teacher on labelled, pre-trained teacher on unlabelled texts (the paper's two teachers)",
            distill=DistillConfig(
                losses=_terms(
                    "task_ce",
                    LossSpec(name="kd_tuned", on="labelled"),
                    LossSpec(name="kd_pretrained", on="unlabelled"),
                )
            ),
        ),
        "unlabelled_only": Method(
            summary="pre-trained teacher on the pool, no label at all",
            distill=DistillConfig(losses=_terms("kd_pretrained")),
            labels=False,
        ),
        "gold_ceiling": Method(
            summary="student on gold labels for the same pool",
            kind="gold",
            distill=DistillConfig(losses=_terms("task_ce")),
        ),
        "paper": Method(
            summary="published objective: T 10, weights 0.2, literal contrast, 100 epochs at 1e-5",
            distill=DistillConfig(
                losses=_terms(
                    LossSpec(name="task_ce", scale="published"),
                    LossSpec(name="kd_tuned", weight=0.2, temperature=10.0, on="labelled", scale="published"),
                    LossSpec(name="kd_pretrained", weight=0.2, temperature=10.0, on="unlabelled", scale="published"),
                    LossSpec(name="cpd_literal", weight=0.2, scale="published"),
                ),
                train=SCHEDULE.model_copy(
                    update={"lr": 1e-5, "batch_size": 4, "steps": None, "epochs": 100, "schedule": "constant"}
                ),
            ),
        ),
    }
)
