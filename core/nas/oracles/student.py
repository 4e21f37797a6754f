"""Transformer students: a sub-network is cut from a given model, shortly distilled, and judged on a text task.

A query: the weights of the sub-network are taken from the original (:func:`core.models.cut.cut`), it learns the
original's sentence embeddings on unlabelled texts (cosine of what is left once the mean embedding is subtracted: raw
embeddings share most of their direction), then a logistic regression on its embeddings of few labelled texts is scored
on validation texts. Everything is real work, cached by shape, model, data and settings.
"""

import json
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.hashing import code_version, content_key
from core.nas.oracles import ORACLES, Answer, Oracle
from core.nas.spaces.transformer_student import StudentShape, TransformerStudent
from core.state import Cache, write_json
from core.transfer.budget import Budget

ORIGINAL = "all-minilm-l6-v2"


class StudentSettings(Config):
    """How a student is distilled and judged."""

    unlabelled: int = Field(512, ge=8, description="texts on which the student learns the original's embeddings")
    labelled: int = Field(256, ge=4, description="labelled train texts of the probe")
    judged: int = Field(500, ge=10, description="most validation (and test) texts that are scored")
    epochs: int = Field(2, ge=1, description="passes over the unlabelled texts")
    batch_size: int = Field(16, ge=1, description="texts in a step")
    lr: float = Field(1e-4, gt=0, description="peak learning rate (AdamW)")
    max_length: int = Field(64, ge=8, description="texts are cut after so many tokens")
    head_shares: tuple[float, ...] = Field((1 / 3, 2 / 3, 1.0), description="attention heads, share of the original's")
    width_shares: tuple[float, ...] = Field((0.25, 0.5, 1.0), description="feed-forward neurons, likewise")


@ORACLES.register("student", space="transformer-student")
class StudentOracle(Oracle):
    """Cuts a student out of an encoder or decoder, distils it shortly, answers with probe accuracy on validation texts.

    ``cost_seconds`` are the wall seconds of cutting, distilling and judging when it was done. ``reference`` has the
    test accuracy, and the original's own validation and test accuracy under the same probe.

    Args:
        model: asset name, folder, hub name or :class:`core.models.load.Source` of an encoder, or of a decoder with
            ``decoder=True``.
        task: name of a built-in text task, or the path of a task's YAML.
        settings: :class:`StudentSettings` or a dict of them.
        seed: of the text samples and the distillation.
    """

    name, noise, cost = "student", "single run", "wall seconds of distillation and probe"
    split = "validation"

    def __init__(
        self,
        model: Any = ORIGINAL,
        task: str = "mr_reviews",
        settings: StudentSettings | dict[str, Any] | None = None,
        decoder: bool = False,
        seed: int = 0,
        budget: Budget | None = None,
        cache: Cache | None = None,
    ):
        super().__init__(budget, seed)
        self.settings = settings if isinstance(settings, StudentSettings) else StudentSettings(**(settings or {}))
        self.cache, self.epochs = cache or Cache(), self.settings.epochs
        self.original = _load(model, decoder, self.settings.max_length)
        config = self.original.backbone.config
        _refuse_uncuttable(config)
        self.space = TransformerStudent.of(config, self.settings.head_shares, self.settings.width_shares)
        self.dataset, self.texts = _texts(task, self.settings, seed)
        hashes = {f"{self.dataset}.{name}": part.sha256 for name, part in self.texts.items()}
        self.inputs = MappingProxyType({self.original.name: self.original.sha256, **hashes})

    def describe(self) -> str:
        return f"{super().describe()}, cut from {self.original.name}"

    def _answer(self, g: StudentShape) -> Answer:
        result = self._result(g)
        metrics = {**self.space.size_features(g), "agreement": result["agreement"]}
        return Answer(result["validation"], result["seconds"], metrics)

    def reference(self, g: StudentShape) -> dict[str, float]:
        """Test accuracy of a queried student beside the original's. Raises ValueError for one never queried."""
        self.space.check(g)
        if self.space.key(g) not in self._answers:
            raise ValueError(f"{self.space.format(g)} was not queried; only distilled students have a test accuracy")
        result, whole = self._result(g), self._original_result()
        return {
            "valid": result["validation"],
            "test": result["test"],
            "original_valid": whole["validation"],
            "original_test": whole["test"],
        }

    def _key(self, what: str) -> str:
        modules = ["core.nas.oracles.student", "core.models.cut"]
        settings = self.settings.model_dump(mode="json", exclude={"head_shares", "width_shares"})
        return content_key(what, dict(self.inputs), settings, self.seed, code_version(modules))

    def _result(self, g: StudentShape) -> dict[str, float]:
        targets = self._targets()

        def build(folder):
            import time

            start = time.perf_counter()
            student = self._distil(g, targets, folder / "distil.ckpt")
            result = self._judge(student) | {"agreement": self._agreement(student, targets)}
            write_json(folder / "result.json", result | {"seconds": time.perf_counter() - start})
            (folder / "distil.ckpt").unlink(missing_ok=True)
            return {"shape": self.space.format(g), "original": self.original.name}

        folder = self.cache.compute("nas-student", self._key(self.space.format(g)), build)
        return json.loads((folder / "result.json").read_text())

    def _original_result(self) -> dict[str, float]:
        def build(folder):
            write_json(folder / "result.json", self._judge(self.original))

        return json.loads((self.cache.compute("nas-student", self._key("original"), build) / "result.json").read_text())

    def _targets(self) -> np.ndarray:
        """The original's embeddings of the unlabelled texts, float32 ``[texts, width]``; computed once."""
        part = self.texts["unlabelled"]

        def build(folder):
            np.save(folder / "targets.npy", self.original.embed(part.texts, part.pairs))

        return np.load(self.cache.compute("nas-student", self._key("targets"), build) / "targets.npy")

    def _distil(self, g: StudentShape, targets: np.ndarray, checkpoint):
        import torch

        from core.models.cut import cut
        from core.models.encoder import TextEncoder
        from core.models.train import TrainConfig, train

        original, part, s = self.original, self.texts["unlabelled"], self.settings
        backbone = cut(original.backbone, self.space.cuts(g))
        digest = content_key(original.sha256, self.space.format(g))
        student = TextEncoder(backbone, original.tokenizer, f"{original.name} student", digest, original.max_length)
        tokens, mean = student.tokenize(part.texts, part.pairs), torch.from_numpy(targets.mean(0)).to(student.device)
        goal = torch.from_numpy(targets).to(student.device) - mean

        def loss(model, indices):
            vectors = model(tokens.batch(indices, student.device)) - mean
            return (1 - torch.nn.functional.cosine_similarity(vectors, goal[torch.from_numpy(indices)])).mean()

        config = TrainConfig(lr=s.lr, epochs=s.epochs, batch_size=s.batch_size, dropout=False, checkpoint_s=10.0)
        train(
            student, loss, tokens.lengths, config, seed=self.seed, checkpoint=checkpoint, description="distil student"
        )
        return student.eval()

    def _agreement(self, student, targets: np.ndarray) -> float:
        """Mean cosine of student and original on the unlabelled texts, the original's mean embedding subtracted."""
        part, mean = self.texts["unlabelled"], targets.mean(0)
        ours, theirs = student.embed(part.texts, part.pairs) - mean, targets - mean
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return float(((ours * theirs).sum(1) / np.maximum(norms, 1e-12)).mean())

    def _judge(self, encoder) -> dict[str, float]:
        """Validation and test accuracy in percent of a logistic regression on the encoder's embeddings."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        vectors = {
            name: encoder.embed(part.texts, part.pairs) for name, part in self.texts.items() if name != "unlabelled"
        }
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        probe.fit(vectors["labelled"], self.texts["labelled"].labels)
        return {
            name: 100.0 * float(probe.score(vectors[name], self.texts[name].labels)) for name in ("validation", "test")
        }


def _load(model: Any, decoder: bool, max_length: int):
    """The original as a text encoder with mean pooling; a decoder without its head."""
    from core.models.encoder import TextEncoder
    from core.models.load import load_causal, load_encoder

    if not decoder:
        encoder = load_encoder(model)
        encoder.max_length = min(encoder.max_length, max_length)
        return encoder
    whole = load_causal(model)
    backbone = whole.model.base_model
    return TextEncoder(backbone, whole.tokenizer, whole.name, whole.sha256, min(whole.max_length, max_length)).eval()


def _refuse_uncuttable(config: Any) -> None:
    from core.models.cut import FAMILIES

    if config.model_type not in FAMILIES:
        raise ValueError(f"models of type {config.model_type!r} cannot be cut; known: {', '.join(sorted(FAMILIES))}")


def _texts(task: str, settings: StudentSettings, seed: int) -> tuple[str, dict[str, Any]]:
    """Task name and its parts: unlabelled and labelled (both of the train split, disjoint), validation, test."""
    from core.data.tasks import load_task

    description = load_task(task)
    if description.kind not in ("single", "pair"):
        raise ValueError(f"task {description.name} is of kind {description.kind}; a student needs texts with classes")
    splits = description.splits()
    need = settings.unlabelled + settings.labelled
    if len(splits.train) < need:
        raise ValueError(f"task {description.name} has {len(splits.train)} train texts, {need} are wanted; lower them")
    order = np.random.default_rng(seed).permutation(len(splits.train))[:need]
    labelled = splits.train.take(order[: settings.labelled])
    if len(set(labelled.labels)) < 2:
        raise ValueError(f"{settings.labelled} labelled texts of {description.name} have one class only; take more")
    return description.name, {
        "unlabelled": splits.train.take(order[settings.labelled :]),
        "labelled": labelled,
        "validation": splits.validation.sample(settings.judged, seed),
        "test": splits.test.sample(settings.judged, seed),
    }
