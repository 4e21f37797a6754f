"""Real training as an oracle: a cell becomes a small network, is trained on images, and its validation accuracy counts.

Results are cached by cell, data, settings and code; a training that was killed continues where it stopped.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.hashing import code_version, content_key
from core.nas.networks import NETWORKS, Macro, build_network
from core.nas.oracles import ORACLES, Answer, Oracle
from core.nas.spaces import Genotype, get_space
from core.state import Cache, write_json
from core.transfer.budget import Budget

RUNS = 3  # trainings of a cell, from other weights and in another order


class TrainingSettings(Config):
    """How a cell is trained."""

    macro: Macro = Field(Macro(), description="skeleton around the cell")
    epochs: int = Field(12, ge=1, description="longest training")
    patience: int = Field(4, ge=1, description="epochs without a lower validation loss before it stops")
    lr: float = Field(0.05, gt=0, description="peak learning rate (SGD with momentum .9, cosine decay)")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    batch_size: int = Field(64, ge=2, description="images in a step")
    train_examples: int | None = Field(
        None, ge=10, description="train on so many images of the train split and validate on its rest, too"
    )
    device: str = Field("auto", description="cpu, cuda, or auto")
    threads: int = Field(1, ge=1, description="CPU threads; small networks are no faster on more")


@ORACLES.register("training")
class TrainingOracle(Oracle):
    """Trains NAS-Bench-101, NAS-Bench-201 or DARTS cells on images and answers with validation accuracy.

    The answer is the accuracy at the epoch of lowest validation loss. Test accuracy of that state is in ``reference``.
    ``cost_seconds`` are the wall seconds of the training when it was done, also when it comes from the cache.

    Args:
        space: name of a space that has a network.
        data: name of a built-in image task (scikit-learn's digits) or the path of a task's YAML: image folder or any
            numeric array with an ``image_shape``.
        settings: :class:`TrainingSettings` or a dict of them.
        seed: of weights, order, and the cut of the training images (which stays when a cell is trained again).
    """

    name, noise, cost = "training", "single run", "wall seconds of the training"

    def __init__(
        self,
        space: str = "nb101",
        data: str = "digits",
        settings: TrainingSettings | dict[str, Any] | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        cache: Cache | None = None,
    ):
        super().__init__(budget, seed)
        self.settings = settings if isinstance(settings, TrainingSettings) else TrainingSettings(**(settings or {}))
        self.space, self.epochs = get_space(space), self.settings.epochs
        NETWORKS.get(space)
        self.cache = cache or Cache()
        self.dataset, self.classes, self.parts, self.inputs = _images(str(data), self.settings.train_examples, seed)
        self.settings.macro.check_images(self.parts["train"][0].shape[1:])

    def device(self) -> str:
        """Where networks are trained and timed."""
        from core.models.load import default_device

        return default_device() if self.settings.device == "auto" else self.settings.device

    def runs(self, g: Genotype) -> int:
        return RUNS

    def _answer(self, g: Genotype) -> Answer:
        return self._repeat(g, 0)

    def _repeat(self, g: Genotype, run: int) -> Answer:
        result = self._result(g, run)
        names = ("params", "epochs_trained", "train_accuracy")
        return Answer(result["validation"], result["seconds"], {name: result[name] for name in names})

    def reference(self, g: Genotype) -> dict[str, float]:
        """Test accuracy, mean over the trainings asked for. Raises ValueError for a cell that was never queried."""
        self.space.check(g)
        if self.space.key(g) not in self._answers:
            raise ValueError(f"{self.space.format(g)} was not queried; only trained cells have a test accuracy")
        results = [self._result(g, run) for run in range(1 + self._repeats.get(self.space.key(g), 0))]
        told = {"test": "test", "valid": "validation"}
        return {name: float(np.mean([r[source] for r in results])) for name, source in told.items()}

    def _result(self, g: Genotype, run: int) -> dict[str, float]:
        cell = self.space.canonical(g)
        version = code_version(["core.nas.oracles.training", f"core.nas.networks.{self.space.name}"])
        facts = {"cell": self.space.format(cell), "space": self.space.name, "data": dict(self.inputs)}
        settings = self.settings.model_dump(mode="json", exclude={"device", "threads"})
        seed = self.seed + run * 1_000_003  # far from the seeds of other searches
        key = content_key(facts, settings, *((self.seed, run) if run else (self.seed,)), version)

        def build(folder):
            with limited_threads(self.settings.threads):
                write_json(folder / "result.json", self._train(cell, seed, folder / "training.ckpt"))
            (folder / "training.ckpt").unlink(missing_ok=True)
            return facts

        folder = self.cache.compute("nas-training", key, build)
        return json.loads((folder / "result.json").read_text())

    def _train(self, cell: Genotype, seed: int, checkpoint) -> dict[str, float]:
        import torch

        from core.models.train import TrainConfig, train

        s, device = self.settings, self.device()
        channels = self.parts["train"][0].shape[1]
        network = build_network(self.space, cell, s.macro, channels, self.classes, seed).to(device)
        data = {n: (torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)) for n, (x, y) in self.parts.items()}
        images, labels = data["train"]

        def loss(model, indices):
            rows = torch.from_numpy(indices).to(device)
            return torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])

        stop = _Best(network, data["validation"], s.patience)
        config = TrainConfig(
            optimizer="sgd",
            lr=s.lr,
            weight_decay=s.weight_decay,
            epochs=s.epochs,
            batch_size=s.batch_size,
            schedule="cosine",
            clip=5.0,
            precision="float32" if device == "cpu" else "auto",
            checkpoint_s=5.0,
        )
        name = f"train {self.space.name}"
        report = train(
            network,
            loss,
            len(labels),
            config,
            seed=seed,
            checkpoint=checkpoint,
            after_epoch=stop,
            description=name,
        )
        stop.restore()
        accuracy = {name: _evaluate(network, *part)[1] for name, part in data.items()}
        return {
            "validation": accuracy["validation"],
            "test": accuracy["test"],
            "train_accuracy": accuracy["train"],
            "epochs_trained": report.steps / -(-len(labels) // s.batch_size),
            "params": sum(p.numel() for p in network.parameters()),
            "seconds": report.seconds,
        }


class _Best:
    """Epoch hook: remembers the state of lowest validation loss, stops after ``patience`` epochs without a lower one.

    Its checkpoint carries the network's buffers (running statistics), which the training loop does not keep.
    """

    def __init__(self, network, validation, patience: int):
        self.network, self.validation, self.patience = network, validation, patience
        self.loss, self.epoch, self.best = float("inf"), 0, {}

    def __call__(self, epoch: int) -> bool:
        loss = _evaluate(self.network, *self.validation)[0]
        if loss < self.loss or not self.best:
            self.loss, self.epoch = loss, epoch
            self.best = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        return epoch - self.epoch >= self.patience

    def restore(self) -> None:
        """Put the best state back into the network."""
        self.network.load_state_dict(self.best)

    def state_dict(self) -> tuple[Any, dict[str, np.ndarray]]:
        arrays = {f"best/{n}": v.cpu().numpy() for n, v in self.best.items()}
        arrays |= {f"buffer/{n}": v.cpu().numpy() for n, v in self.network.named_buffers()}
        return {"loss": self.loss if self.best else None, "epoch": self.epoch}, arrays

    def load_state_dict(self, payload: Any, arrays: dict[str, np.ndarray]) -> None:
        import torch

        device, shapes = self.validation[0].device, {n: v.shape for n, v in self.network.state_dict().items()}

        def tensors(group: str) -> dict[str, Any]:  # a checkpoint has no arrays without axes: restore the shape
            found = {n.removeprefix(group): a for n, a in arrays.items() if n.startswith(group)}
            return {n: torch.from_numpy(a.copy()).reshape(shapes[n]).to(device) for n, a in found.items()}

        self.epoch, self.best, buffers = payload["epoch"], tensors("best/"), tensors("buffer/")
        self.loss = payload["loss"] if self.best else float("inf")
        for name, buffer in self.network.named_buffers():
            buffer.copy_(buffers[name])


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Torch's CPU threads set to ``count`` inside, as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _evaluate(network, images, labels) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent."""
    import torch

    from core.models.score import evaluating

    with torch.inference_mode(), evaluating(network):
        logits = torch.cat([network(part).float() for part in images.split(512)])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss), 100.0 * float((logits.argmax(1) == labels).float().mean())


def _images(data: str, train_examples: int | None, seed: int) -> tuple[str, int, dict[str, tuple], MappingProxyType]:
    """Name, number of classes, ``{"train" | "validation" | "test": (float32 images, int64 labels)}``, sha256 of each.

    Images are shifted and scaled by mean and deviation of the training images.
    """
    from core.data.tasks import load_task

    task = load_task(data)
    if task.kind != "image":
        raise ValueError(f"task {task.name} is of kind {task.kind}; training cells needs images (kind image)")
    splits = task.splits()
    parts = {}
    for name in ("train", "validation", "test"):
        examples = getattr(splits, name)
        parts[name] = (examples.arrays.astype(np.float32), np.asarray(examples.labels, dtype=np.int64))
    if train_examples is not None:
        images, labels = parts["train"]
        if train_examples >= len(labels):
            raise ValueError(
                f"{train_examples} training images of a query, but {task.name} has {len(labels)}; give fewer than that "
                "(train_examples; in the flow search images)"
            )
        order = np.random.default_rng(seed).permutation(len(labels))
        kept, rest = order[:train_examples], order[train_examples:]
        held, held_labels = parts["validation"]
        parts["train"] = (images[kept], labels[kept])
        parts["validation"] = (np.concatenate([held, images[rest]]), np.concatenate([held_labels, labels[rest]]))
    if len(np.unique(parts["train"][1])) < 2:
        raise ValueError(f"the training images of {task.name} are all of one class; a search needs at least two")
    mean, deviation = parts["train"][0].mean(), max(float(parts["train"][0].std()), 1e-6)
    parts = {n: ((x - mean) / deviation, y) for n, (x, y) in parts.items()}
    return task.name, task.n_classes, parts, MappingProxyType({f"{task.name}.{n}": h for n, h in splits.sha256.items()})
