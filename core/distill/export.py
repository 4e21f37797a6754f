"""A student as a folder that serves: transformers weights, head, tokenizer, label map and prompt.

from core.distill.export import load_student
load_student("folder")(["a fine film"])        # [{"label": "positive", "score": 0.97}]
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.models.answer_only import answer_only
from core.models.classifier import HEADS, Head, Prediction, package
from core.models.prompt import Prompt, PromptedEncoder, log_softmax, prompted
from core.models.quiet import quietly
from core.models.score import score
from core.state import StateError, write_json

FORMAT, STUDENT = 1, "student.json"


class Student:
    """A loaded student: texts in, labels and probabilities out."""

    def __init__(self, model: Any, labels: Sequence[str]):
        self.model, self.labels = model.eval(), tuple(labels)

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Float32 [n, C] in the order of ``labels``."""
        if not len(texts):
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        tokens = self.model.tokenize(list(texts), None if pairs is None else list(pairs))
        return np.exp(log_softmax(score(self.model, tokens, description="predict")[0]))

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """The most probable class of each text, as a packaged classifier gives it.

        Raises:
            ValueError: second texts missing, or given to a prompt that has no place for them.
        """
        wanted = "{pair}" in str(self.model.prompt.model_dump())
        if wanted is not (pairs is not None):
            told = "give the second ones as well" if wanted else "leave the second ones out"
            raise ValueError(f"this student reads {'two texts' if wanted else 'one text'} at a time; {told} (--pair)")
        rows = self.probabilities(texts, pairs)
        return [Prediction(self.labels[int(p.argmax())], float(p.max())) for p in rows]

    def __call__(self, texts: str | Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """As a text-classification pipeline: ``{"label": ..., "score": ...}`` for each text."""
        rows = self.probabilities([texts] if isinstance(texts, str) else texts, pairs)
        return [{"label": self.labels[int(p.argmax())], "score": float(p.max())} for p in rows]


def export_student(
    model: Any, folder: str | Path, labels: Sequence[str], task: str = "task", pair: bool | None = None
) -> Path:
    """Write a prompted student to ``folder``; ``pair``: whether its task reads two texts at a time, if known.

    A sentence encoder becomes a packaged classifier (:mod:`core.models.classifier`) with the transformer under
    ``encoder/``; a language model lies under ``model/``. Both open with ``AutoModel``; the prompt is in
    ``student.json``.
    """
    folder = Path(folder)
    encoder = isinstance(model, PromptedEncoder)
    body, tokenizer = (model.encoder.backbone, model.encoder.tokenizer) if encoder else (model.model, model.tokenizer)
    names = dict(enumerate(labels))
    body.config.id2label, body.config.label2id = names, {v: k for k, v in names.items()}
    place = folder / ("encoder" if encoder else "model")
    place.mkdir(parents=True, exist_ok=True)
    quietly(body.save_pretrained, place)
    tokenizer.save_pretrained(place)
    length = model.encoder.max_length if encoder else model.max_length
    if encoder:
        weights = (p.detach().cpu().float().numpy() for p in (model.head.weight, model.head.bias))
        head = Head(*weights, tuple(labels), pair)
        package(folder, {task: head}, length, {"normalize": bool(model.normalize)})
    description = {
        "format": FORMAT,
        "kind": model.kind,
        "name": model.name,
        "labels": list(labels),
        "prompt": model.prompt.model_dump(mode="json"),
        "normalize": bool(getattr(model, "normalize", False)),
        "max_length": length,
    }
    write_json(folder / STUDENT, description)
    return folder


def load_student(folder: str | Path, device: str | None = None) -> Student:
    """The student that :func:`export_student` wrote.

    Raises:
        StateError: no student there, or one written by a newer version.
    """
    folder = Path(folder)
    if not (folder / STUDENT).exists():
        raise StateError(
            f"{folder} holds no student (student.json is missing); give a folder written by the flow distill"
        )
    about = json.loads((folder / STUDENT).read_text())
    if about["format"] > FORMAT:
        raise StateError(f"{folder} was written by a newer version; update transferopt")
    return Student(_model(folder, about, device), about["labels"])


def _model(folder: Path, about: dict[str, Any], device: str | None) -> Any:
    from core.models.load import load_causal, load_encoder, load_masked

    prompt = Prompt(**about["prompt"])
    if about["kind"] != "encoder":
        lm = (load_causal if about["kind"] == "causal" else load_masked)(str(folder / "model"), device=device)
        return answer_only(prompted(lm, prompt, max_length=about["max_length"]))
    import torch
    from safetensors.torch import load_file

    encoder = load_encoder(str(folder / "encoder"), device=device)
    encoder.max_length = about["max_length"]
    model = prompted(encoder, prompt)
    stored = load_file(folder / HEADS)
    with torch.no_grad():
        for name, parameter in (("weight", model.head.weight), ("bias", model.head.bias)):
            parameter.copy_(next(t for key, t in stored.items() if key.endswith(f".{name}")))
    model.normalize = about["normalize"]
    return model


def export_onnx(model: PromptedEncoder, path: str | Path) -> Path:
    """Write an encoder student as ONNX: ``input_ids``, ``attention_mask`` (and token types) in, ``logits`` out.

    Raises:
        ValueError: the student is no sentence encoder, or the package onnx is missing.
    """
    import importlib.util

    import torch

    if not isinstance(model, PromptedEncoder):
        raise ValueError("ONNX export is for sentence-encoder students; serve language models with load_student")
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("ONNX export needs the package onnx: pip install onnx")
    batch = model.tokenize(["a short text", "another one that is longer"]).batch(np.arange(2))
    names = list(batch)

    class _Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors):
            return self.model(dict(zip(names, tensors, strict=True)))

    axes = {n: {0: "batch", 1: "tokens"} for n in names} | {"logits": {0: "batch"}}
    torch.onnx.export(
        _Flat().eval(), tuple(batch.values()), str(path), input_names=names, output_names=["logits"], dynamic_axes=axes,
        dynamo=False,
    )  # fmt: skip
    return Path(path)
