"""Torn files and long loops, in this process: every damage must be noticed and named, memory must stay flat."""

import gc
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from core.evaluate.rows import Row, write_rows
from core.hashing import content_key, sha256_folder
from core.state import MANIFEST, Cache, StateError, load_checkpoint, save_checkpoint, verify, write_json

Outcome = dict[str, float]
MB = 1e6


def damages(data: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """``count`` truncations and as many single flipped bits, the first and last byte among them."""
    if not data:
        return
    places = [0, len(data) - 1, *rng.integers(0, len(data), max(count - 2, 0)).tolist()][:count]
    for at in places:
        yield f"cut at {at}", data[:at]
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        yield f"bit flipped at {at}", bytes(flipped)


def checkpoint(seed: int, count: int) -> Outcome:
    """A checkpoint with arrays: refused and named after every damage."""
    rng, failures, trials = np.random.default_rng(seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "search.ckpt"
        arrays = {"mean": rng.normal(size=40), "covariance": rng.normal(size=(40, 40)), "order": np.arange(9)}
        save_checkpoint(path, {"generation": 7, "trials": list(range(50))}, kind="search", schema=1, arrays=arrays)
        for what, data in damages(path.read_bytes(), rng, count):
            trials += 1
            path.write_bytes(data)
            try:
                load_checkpoint(path, kind="search", schema=1)
                failures.append(f"{what}: read as if nothing were wrong")
            except StateError as error:
                if str(path) not in str(error):
                    failures.append(f"{what}: not named: {error}")
    return _outcome(trials, failures)


def sealed(folder: Path, seed: int, count: int) -> tuple[int, list[str]]:
    """Damage every file of a sealed folder ``count`` times each way and put it right again: trials and failures.

    Files that other folders share (hard links) are replaced by copies first, so only this folder is touched.
    """
    rng, failures, trials = np.random.default_rng(seed), [], 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        good = path.read_bytes()
        path.unlink()
        for what, data in damages(good, rng, count):
            path.write_bytes(data)
            trials += 1
            if path.name == MANIFEST and _says_the_same(data, good):
                continue  # a bit in a note (who made it, when), not in names, sizes or hashes
            try:
                verify(folder)
                failures.append(f"{path}: {what}: passed as whole")
            except StateError as error:
                if path.name not in str(error):
                    failures.append(f"{path}: {what}: not named: {error}")
        path.write_bytes(good)
    verify(folder)
    return trials, failures


def _says_the_same(a: bytes, b: bytes) -> bool:
    try:
        one, two = json.loads(a), json.loads(b)
        return all(one[k] == two[k] for k in ("schema", "sha256", "files"))
    except (ValueError, KeyError, TypeError):
        return False


def cache(seed: int, count: int) -> Outcome:
    """A cached folder of several kinds of files: after any damage it is not found, and computed again equal."""
    import pandas as pd
    from safetensors.numpy import save_file

    def build(part: Path) -> None:
        values = np.random.default_rng(seed)
        save_file({"w": values.normal(size=(30, 30)).astype(np.float32)}, part / "model.safetensors")
        pd.DataFrame({"x": values.normal(size=50)}).to_parquet(part / "table.parquet")
        np.savez(part / "answers.npz", a=values.normal(size=20))
        write_rows(part / "rows.jsonl", [Row(method="m", metric="accuracy", value=0.5)])
        write_json(part / "facts.json", {"a": 1})

    rng, failures, trials = np.random.default_rng(seed), [], 0
    with tempfile.TemporaryDirectory() as root:
        store, key = Cache(root), content_key("x")
        folder = store.compute("kind", key, build)
        names, whole = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST), _content(folder)
        for name in names:
            for what, data in damages((folder / name).read_bytes(), rng, count):
                trials += 1
                (folder / name).write_bytes(data)
                if store.find("kind", key) is not None:
                    failures.append(f"{name}: {what}: used")
                if _content(store.compute("kind", key, build)) != whole:
                    failures.append(f"{name}: {what}: computed again, but not equal")
    return _outcome(trials, failures)


def _content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in (MANIFEST, "answers.npz")}


def parquet(seed: int, count: int) -> Outcome:
    """A user's parquet file: after any damage refused by name, or other rows with another hash; never other rows under
    the hash of the sound ones."""
    import pandas as pd
    import yaml

    rng, failures, trials, refused = np.random.default_rng(seed), [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path, task = Path(folder) / "rows.parquet", Path(folder) / "t.yaml"
        words = rng.choice(["good", "bad", "film", "plot", "scene"], (90, 6))
        labels = np.arange(90) % 2
        frame = pd.DataFrame({"text": [f"{' '.join(w)} {i}" for i, w in enumerate(words)], "label": labels})
        frame["label"] = frame["label"].map({0: "no", 1: "yes"})
        frame.to_parquet(path)
        described = {"version": 1, "kind": "single", "source": {"path": path.name}, "labels": ["no", "yes"],
                     "splits": {"validation": 0.3, "test": 0.3}, "metric": "accuracy",
                     "fields": {"text": "text", "label": "label"}}  # fmt: skip
        task.write_text(yaml.safe_dump(described))
        sound = _splits(task)
        for what, data in damages(path.read_bytes(), rng, count):
            trials += 1
            path.write_bytes(data)
            try:
                found = _splits(task)
            except Exception as error:  # whatever is not a readable refusal is what is looked for
                refused += 1
                if not isinstance(error, ValueError) or not (path.name in str(error) or "task t:" in str(error)):
                    failures.append(f"{what}: not named: {type(error).__name__}: {error}")
                continue
            if (found[0] == sound[0]) != (found[1] == sound[1]):
                failures.append(f"{what}: other rows under the same hash, or the reverse")
    return _outcome(trials, failures) | {"refused": float(refused)}


def _splits(task: Path) -> tuple[str, str]:
    """Hash of a task's splits as the flows see it, and their content."""
    from core.data.tasks import load_task

    splits = load_task(str(task)).splits()
    parts = (splits.train, splits.validation, splits.test)
    return content_key(splits.sha256), content_key([[p.texts, p.labels] for p in parts])


def asset(seed: int, count: int) -> Outcome:
    """A fetched asset in the cache: every file of it damaged, one at a time, is noticed and named."""
    import shutil

    from core.data.assets import asset_cache, default_assets, state

    here = [e for e in default_assets() if state(e) == "cached"]
    if not here:
        return {}
    smallest = min(here, key=lambda e: e.bytes)
    with tempfile.TemporaryDirectory() as root:
        copy = Path(root) / "asset"
        shutil.copytree(asset_cache().path(smallest.name, smallest.key), copy)
        before = sha256_folder(copy)
        trials, failures = sealed(copy, seed, count)
        if sha256_folder(copy) != before:
            failures.append("the folder is not as it was")
    return _outcome(trials, failures)


def memory(seed: int, generations: int) -> Outcome:
    """An evolve loop with checkpoints, long enough to show what it keeps: resident memory early and at the end."""
    from core.evolve.loop import search
    from core.evolve.optimizers import OPTIMIZERS
    from core.evolve.space import Box
    from core.transfer.budget import Budget

    process, sizes = psutil.Process(), {}
    space = Box([-1.0] * 6, [1.0] * 6)
    optimizer = OPTIMIZERS.get("cma")(space, seed=seed)

    def note(number: int, _trials) -> None:
        if number % 100 == 0:
            gc.collect()
            sizes[number] = process.memory_info().rss / MB

    def evaluate(candidates):
        return [-float(np.square(np.asarray(c) - 0.3).sum()) for c in candidates]

    with tempfile.TemporaryDirectory() as folder:
        search(
            optimizer,
            evaluate,
            Budget("queries"),
            batch=6,
            checkpoint=Path(folder) / "search",
            on_generation=note,
            max_generations=generations,
        )
    early = sizes[min(200, max(sizes))]
    return {
        "trials": float(max(sizes)),
        "failures": 0.0,
        "megabytes_early": early,
        "megabytes_end": sizes[max(sizes)],
        "growth": sizes[max(sizes)] / early - 1,
    }


def _outcome(trials: int, failures: list[str]) -> Outcome:
    for line in failures[:5]:
        print(line)
    return {"trials": float(trials), "failures": float(len(failures))}
