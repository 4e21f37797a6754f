"""One student a task, all from one start: distilled, written as experts of that start, checked before merging."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.chain.start import Start
from core.distill.methods import METHODS
from core.distill.students import ModelConfig
from core.distill.study import Study, StudyConfig
from core.hashing import sha256_file
from core.merge.experts import CARD, HEAD, TASK, Expert, check_tasks, fit_probe, load_expert
from core.merge.task_vectors import read_tensors
from core.registry import nearest
from core.state import write_json
from core.transfer.budget import Budget

FROZEN = "embeddings"  # students of one start differ in their layers only


def distillations() -> list[str]:
    """Methods of :data:`core.distill.methods.METHODS` in which a teacher teaches for a fixed number of steps."""
    return [n for n, m in METHODS.items() if m.kind == "distill" and m.distill is not None and m.distill.train.steps]


def check_method(name: str) -> None:
    """Refuse a method that is no distillation.

    Raises:
        ValueError: naming the nearest and all allowed ones.
    """
    allowed = distillations()
    if name not in allowed:
        raise ValueError(f"unknown distillation {name!r}{nearest(name, allowed)} Allowed: {', '.join(allowed)}")


class FromStart(Study):
    """A few-shot study whose student is a copy of the start.

    Its embeddings stay frozen, and its label-word head reads raw embeddings (scaled by their mean length over the few
    labelled texts), since that is what a merged model with several heads computes.
    """

    def __init__(self, config: StudyConfig, start: Start, max_length: int):
        super().__init__(config.model_copy(update={"student": ModelConfig(asset=str(start.folder))}))
        self.max_length = max_length

    def student(self) -> Any:
        import torch

        model = super().student()
        model.encoder.max_length = min(self.max_length, model.encoder.max_length)
        length = np.linalg.norm(model.encoder.embed(self.few.train.texts, self.few.train.pairs), axis=1).mean()
        with torch.no_grad():
            model.head.weight.div_(float(length))
        model.normalize = False
        for name, parameter in model.encoder.named_parameters():
            parameter.requires_grad_(FROZEN not in name)
        return model


def distil_student(config: StudyConfig, method: str, start: Start, folder: Path, max_length: int) -> Budget:
    """Distil the study's tuned teacher into a copy of ``start`` and write it to ``folder`` as an expert of the start.

    Beside what an expert holds (:mod:`core.merge.experts`) the card names the structure and the hash of the start. The
    probe of the folder is fitted on the frozen start with the same labels: what no distillation gives.
    """
    from safetensors.numpy import save_file

    from core.models.load import load_encoder
    from core.models.quiet import quietly

    study = FromStart(config, start, max_length)
    model, budget, facts = study.train(method, folder=folder)
    few, encoder = study.few, model.encoder
    frozen = load_encoder(start.folder)
    frozen.max_length = encoder.max_length
    tokens, labels = frozen.tokenize(few.train.texts, few.train.pairs), np.asarray(few.train.labels, dtype=np.int64)
    probe_weight, probe_bias = fit_probe(frozen, tokens, labels, study.classes)
    quietly(encoder.backbone.save_pretrained, folder)
    encoder.tokenizer.save_pretrained(folder)
    head = {n: p.detach().float().cpu().numpy().copy() for n, p in model.head.named_parameters()}
    save_file({**head, "probe.weight": probe_weight, "probe.bias": probe_bias}, folder / HEAD)
    write_json(folder / TASK, study.task.model_dump(mode="json", by_alias=True))
    card = {
        "task": study.task.name,
        "classes": study.classes,
        "base": f"{start.original} cut",
        "base_sha256": start.sha256,
        "structure": start.structure,
        "teacher": config.teacher.asset,
        "method": method,
        "gate": facts,
        "train_sha256": few.train.sha256,
        "train_labels": len(few.train),
        "train_examples": int(budget.counts.get("train_examples", 0)),
        "weights_sha256": sha256_file(folder / "model.safetensors"),
    }
    write_json(folder / CARD, card)
    return budget


def check_students(start: Start, folders: Sequence[str | Path]) -> list[Expert]:
    """Refuse to merge anything but students of one structure that all began at ``start``.

    Names and shapes of the tensors are read from the files themselves.

    Raises:
        ValueError: fewer than two students, no student of a chain, two of one task, different structures, different
            starts, or other tensors than the start's.
    """
    students = [load_expert(folder) for folder in folders]
    if len(students) < 2:
        raise ValueError(f"a merge needs at least two students, got {len(students)}")
    for s in students:
        if "structure" not in s.card:
            raise ValueError(f"{s.folder} is an expert, no student of a cut start (its {CARD} names no structure)")
    _one("structures", {s.task: s.card["structure"] for s in students}, start.structure)
    _one("cut weights", {s.task: s.card["base_sha256"] for s in students}, start.sha256)
    check_tasks(students)
    for s in students:
        _same_tensors(s, start.tensors)
    return students


def _one(what: str, found: dict[str, str], expected: str) -> None:
    if set(found.values()) != {expected}:
        listed = "; ".join(f"{task}: {value[:60]}" for task, value in found.items())
        raise ValueError(
            f"students of different {what} cannot be merged: {listed}; the start is {expected[:60]}. "
            "Distil every student from this one start"
        )


def _same_tensors(student: Expert, expected: dict[str, list[int]]) -> None:
    found = {name: list(size) for name, size in read_tensors(student.folder).items()}
    if found != expected:
        names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        shown = ", ".join(f"{n} {found.get(n)} instead of {expected.get(n)}" for n in names[:3])
        raise ValueError(
            f"student of {student.task!r} has other tensors than its start ({len(names)} differ: {shown}); "
            "it was changed after it was distilled"
        )
