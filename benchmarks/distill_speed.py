"""Speed of distilling: ours with cached signals against transformers.Trainer, with the teacher in the loop and cached.

    make bench-distill_speed

Same models, texts, batch size, epochs, precision and hardware, in one run. Ours counts computing the signals. Also how
many texts a second student and teacher serve. Run it on a quiet machine: seconds are wall-clock.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.data.assets import resolve
from core.data.tasks import load_task
from core.distill.distiller import DistillConfig, distill
from core.distill.interface import LossSpec
from core.distill.prompts import task_prompt
from core.distill.signals import Signals, compute_signals
from core.distill.students import MINILM, SMOLLM2_6, SMOLLM2_8, answers
from core.distill.teachers import MINILM as MINILM_TEACHER
from core.distill.teachers import MPNET, SMOLLM2, build
from core.distill.transfer_set import transfer_set
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row
from core.models.answer_only import answer_only
from core.models.score import autocast, resolve_dtype
from core.models.train import TrainConfig

TASK, EPOCHS, BATCH, LR, TEMPERATURE = "rt_fresh", 5, 32, 1e-4, 2.0
MODULES = ("core.distill.distiller", "core.distill.signals", "core.models.train", "core.models.score")
SERVING = (*MODULES, "core.models.answer_only")
PAIRS = {
    "mpnet to minilm": (MPNET, MINILM),
    "smollm2 to minilm": (SMOLLM2, MINILM),
    "smollm2 to its first 6 layers": (SMOLLM2, SMOLLM2_6),
    "smollm2 to its first 8 layers": (SMOLLM2, SMOLLM2_8),
    "minilm to minilm": (MINILM_TEACHER, MINILM),
}


def cells(size: str) -> list[Cell]:
    """Four ways of distilling one pair, repeated; then serving speed of each pair."""
    texts, repeats = (32, 1) if size == "smoke" else (256, 3)
    pair = "minilm to minilm" if size == "smoke" else "mpnet to minilm"
    made = [Cell(m, {"pair": pair, "texts": texts, "epochs": EPOCHS}, r, MODULES) for r in range(repeats) for m in WAYS]
    serving = [pair] if size == "smoke" else list(PAIRS)[:4]
    return made + [Cell("serve", {"pair": p, "texts": texts}, r, SERVING) for p in serving for r in range(repeats)]


def measure(c: Cell) -> list[Row]:
    """Seconds of one way (loading the models not counted), or texts a second."""
    teacher_config, student_config = PAIRS[c.settings["pair"]]
    task = load_task(TASK)
    prompt = task_prompt(task)
    teacher, student = build(teacher_config, prompt), build(student_config, prompt)
    texts = task.splits().train.sample(c.settings["texts"], seed=c.seed)
    if c.method == "serve":
        served = [answer_only(m) for m in (teacher, student)]  # as load_student does
        speeds = [len(texts) / _best(lambda m=m: answers(m, texts)) for m in served]
        return [c.row(f"{who} texts a second", v) for who, v in zip(("teacher", "student"), speeds, strict=True)]
    answers(student, texts.take(range(8)))  # warm up
    given = compute_signals(teacher, texts.texts) if c.method in GIVEN else None
    start = time.perf_counter()
    WAYS[c.method](teacher, student, texts, c.seed, given)
    return [c.row("seconds", time.perf_counter() - start, {"train_examples": float(EPOCHS * len(texts))})]


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _ours(teacher: Any, student: Any, texts: Any, seed: int, given: Signals | None) -> None:
    data = transfer_set(None, texts)
    signals = given or compute_signals(teacher, data.texts)
    losses = (LossSpec(name="kd_tuned", temperature=TEMPERATURE),)
    config = DistillConfig(losses=losses, train=TrainConfig(lr=LR, epochs=EPOCHS, batch_size=BATCH, warmup=0.0))
    distill(student, data, config, seed=seed, tuned=signals)


def _cached(teacher: Any, student: Any, texts: Any, seed: int, given: Signals) -> None:
    logits = torch.from_numpy(np.asarray(given.logits, dtype=np.float32))
    _trainer(student, texts, seed, lambda inputs: logits[inputs["index"].cpu()])


def _in_loop(teacher: Any, student: Any, texts: Any, seed: int, given: None) -> None:
    tokens = teacher.tokenize(texts.texts)

    def target(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad(), autocast(teacher.device):
            return teacher(tokens.batch(inputs["index"].cpu().numpy(), teacher.device)).float()

    _trainer(student, texts, seed, target)


def _trainer(student: Any, texts: Any, seed: int, target: Callable[[dict], torch.Tensor]) -> None:
    """transformers.Trainer with its own defaults: dynamic padding, random order, autocast where ours has it."""
    from transformers import Trainer, TrainingArguments

    tokens = student.tokenize(texts.texts)

    class KDTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            teacher = target(inputs).to(student.device)
            batch = {k: v for k, v in inputs.items() if k != "index"}
            with autocast(student.device):
                logits = model(batch).float()
            soft = torch.softmax(teacher / TEMPERATURE, -1)
            return -(soft * torch.log_softmax(logits / TEMPERATURE, -1)).sum(-1).mean() * TEMPERATURE**2

    def collate(items: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        index = np.array([item["index"] for item in items])
        return tokens.batch(index) | {"index": torch.from_numpy(index)}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=LR,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            use_cpu=student.device.type == "cpu",
        )
        rows = [{"index": i} for i in range(len(texts))]
        KDTrainer(model=student, args=arguments, train_dataset=rows, data_collator=collate).train()


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Ratios of median seconds over the repeats of one run."""

    def median(method: str, metric: str, pair: str) -> float | None:
        found = [r.value for r in rows if (r.method, r.metric, r.settings["pair"]) == (method, metric, pair)]
        return float(np.median(found)) if len(found) >= 3 else None

    def ratio(goal: str, least: float, above: float | None, below: float | None) -> Goal:
        value = None if above is None or below is None else above / below
        return Goal(goal, f">= {least}", value, None, None, value is not None and value >= least)

    pair = "mpnet to minilm"
    ours = median("distil", "seconds", pair)
    made = [
        ratio("times a Trainer with the teacher in the loop, signals included", 1.3,
              median("trainer, teacher in the loop", "seconds", pair), ours),
        ratio("times a Trainer fed the same cached logits, signals not counted on either side", 1.0,
              median("trainer, cached logits", "seconds", pair), median("distil, cached logits", "seconds", pair)),
    ]  # fmt: skip
    for name in list(PAIRS)[:4]:
        served = [median("serve", f"{who} texts a second", name) for who in ("student", "teacher")]
        least = 5.0 if name != "smollm2 to its first 8 layers" else 4.0
        made.append(ratio(f"{name}: the student serves times the teacher's texts a second", least, *served))
    return made


def page(rows: Sequence[Row], folder: Path) -> str:
    """All rows, the dtype, the hardware."""
    lines = [f"Data: {TASK}; {EPOCHS} epochs of batch {BATCH}, {resolve_dtype()} autocast everywhere.", ""]
    lines += ["| way | pair | texts | repeat | metric | value | hardware |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        s = r.settings
        lines.append(
            f"| {r.method} | {s['pair']} | {s['texts']} | {r.seed} | {r.metric} | {r.value:.1f} | {r.hardware} |"
        )
    return "\n".join(lines)


GIVEN = ("distil, cached logits", "trainer, cached logits")
WAYS = {
    "distil": _ours,
    "distil, cached logits": _ours,
    "trainer, cached logits": _cached,
    "trainer, teacher in the loop": _in_loop,
}
TIMES = frozenset({"seconds", "teacher texts a second", "student texts a second"})
BENCHMARK = Benchmark("distill_speed", "Speed of distilling and serving", cells, measure, goals, page, TIMES)

if __name__ == "__main__":
    resolve(MINILM.asset)
    main(BENCHMARK)
