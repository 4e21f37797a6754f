"""Readers of files from elsewhere against broken and hostile input: never a hang, a crash or a wrong answer.

Each reader gets generated files: valid ones, valid ones with flipped, cut, doubled or inserted bytes, and structures of
the right form with absurd values. A case passes when the reader returns (and its answer survives an independent check)
or refuses with a ``ValueError`` or ``FileNotFoundError`` that says something, within :data:`LIMIT_S` seconds.
"""

import json
import math
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row

CASES = {"smoke": 500, "default": 10_000, "full": 100_000}
LIMIT_S = 5
LONGEST_MESSAGE = 2000


class WrongAnswer(Exception):
    """A reader accepted what it should not have, or misread it."""


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Args:
        modules: what decides the result.
        cases: strategy of file contents (bytes).
        read: path -> answer; raises ValueError or FileNotFoundError to refuse.
        check: (path, answer or None when refused) raises :class:`WrongAnswer`.
        suffix: of the file's name.
    """

    name: str
    modules: tuple[str, ...]
    cases: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[Path], Any]
    check: Callable[[Path, Any], None]
    suffix: str


@dataclass
class Outcome:
    """How the cases of a reader ended; ``failure`` describes the smallest failing case."""

    cases: int = 0
    accepted: int = 0
    failure: str = ""


def fuzz(reader: Reader, cases: int, first_seed: int = 0) -> Outcome:
    """Run generated cases until one fails."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case{reader.suffix}"

        @seed(first_seed)
        @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(reader.cases())
        def run(data: bytes) -> None:
            outcome.cases += 1
            path.write_bytes(data)
            outcome.accepted += one_case(reader, path)

        try:
            run()
        except Exception as error:  # whatever a reader lets through is what is looked for
            outcome.failure = f"{type(error).__name__}: {error}; input {path.read_bytes()[:300]!r}"
    return outcome


def one_case(reader: Reader, path: Path) -> bool:
    """Whether the file is accepted; raises when the reader misbehaves."""
    answer = None
    with time_limit():
        try:
            answer = reader.read(path)
        except (ValueError, FileNotFoundError) as error:
            if not 0 < len(str(error).strip()) <= LONGEST_MESSAGE:
                raise WrongAnswer(f"message of {len(str(error))} characters") from error
    reader.check(path, answer)
    return answer is not None


@contextmanager
def time_limit() -> Iterator[None]:
    """Interrupt what takes longer than :data:`LIMIT_S` (main thread only)."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Generation: valid files, damage to them, and absurd structures.


def damaged(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid contents, or those with a few bytes changed, cut out, doubled or inserted."""
    step = st.tuples(
        st.sampled_from(["flip", "cut", "double", "insert", "end"]), st.integers(0, 1 << 16), st.binary(max_size=8)
    )
    return st.builds(_damage, valid, st.lists(step, max_size=4))


def _damage(data: bytes, steps: Sequence[tuple[str, int, bytes]]) -> bytes:
    for kind, where, extra in steps:
        at = where % (len(data) + 1)
        size = 1 + (extra[0] if extra else 0) % 16
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << where % 8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + size :]
        elif kind == "double":
            data = data[: at + size] + data[at : at + size] + data[at + size :]
        elif kind == "insert":
            data = data[:at] + extra + data[at:]
        elif kind == "end":
            data = data[:at]
    return data


def odd_values(depth: int = 2) -> st.SearchStrategy[Any]:
    """JSON values that files of no honest writer hold."""
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 9), st.integers(-(1 << 70), 1 << 70),
        st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=5),
        st.sampled_from(["F32", "BF16", "ties", "../../etc/passwd", "*", "1e999", "model+a+b", "__metadata__"]),
    )  # fmt: skip
    if depth == 0:
        return leaves
    inner = odd_values(depth - 1)
    return st.one_of(leaves, st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3))


def headers() -> st.SearchStrategy[bytes]:
    """Safetensors files of two or three small tensors, some with absurd entries or lengths."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "BF16", "F16", "I64", "U8", "BOOL"]), odd_values(1)),
            "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), odd_values(1)),
            "data_offsets": st.one_of(st.tuples(st.integers(0, 40), st.integers(0, 80)).map(list), odd_values(1)),
        }
    )
    header = st.one_of(
        st.dictionaries(
            st.sampled_from(["a", "b", "layers.0.w", "__metadata__"]), st.one_of(entry, odd_values()), max_size=4
        ),
        odd_values(),
    )
    absurd = st.builds(_file_of_header, header, st.integers(0, 80), st.one_of(st.just(0), st.integers(-9, 1 << 62)))
    shapes = st.lists(st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4)
    honest = st.builds(_honest_file, shapes, st.integers(0, 9))
    return st.one_of(
        honest,
        damaged(honest),
        damaged(st.sampled_from(_valid_files())),
        absurd,
        st.binary(max_size=64),
        st.builds(_nested),
    )


def _honest_file(tensors: Sequence[tuple[str, list[int]]], padding: int) -> bytes:
    """A valid file of tensors of any format, its header padded with blanks."""
    header, at = {}, 0
    for i, (dtype, shape) in enumerate(tensors):
        size = math.prod(shape) * SIZES[dtype]
        header[f"t.{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + bytes(at)


def _valid_files() -> list[bytes]:
    from safetensors.numpy import save

    small = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    mixed = {"w.0": np.zeros((2, 2)), "ids": np.arange(4), "empty": np.zeros((0, 3), np.float32), "one": np.ones(())}
    return [save(small), save(mixed, {"format": "pt"}), save({"flag": np.ones(3, bool)})]


def _file_of_header(header: Any, size: int, error: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", max(0, len(text) + error) % (1 << 64)) + text + bytes(size)


def _nested() -> bytes:
    text = b"[" * 200_000 + b"]" * 200_000
    return struct.pack("<Q", len(text)) + text


def check_header(path: Path, answer: Any) -> None:
    """The reference library's verdict: what it reads we read equally; what we accept lies in the file, apart."""
    from safetensors import SafetensorError, safe_open

    reference = None
    try:
        with safe_open(path, "np") as file:
            reference = {n: (file.get_slice(n).get_dtype(), file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        pass
    if answer is None:
        if reference is not None and all(dtype in SIZES for dtype, _ in reference.values()):
            raise WrongAnswer(f"refused a file that is valid: {reference}")
        return
    if reference is None:
        raise WrongAnswer("accepted a file that the reference library refuses")
    ours = {n: (t.dtype, list(t.shape)) for n, t in answer.items()}
    if ours != reference:
        raise WrongAnswer(f"read {ours}, the reference library {reference}")
    places = sorted((t.offset, t.offset + t.bytes) for t in answer.values())
    if any(stop > path.stat().st_size for _, stop in places) or any(a[1] > b[0] for a, b in pairwise(places)):
        raise WrongAnswer(f"tensors overlap or leave the file: {places}")


SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2}
SIZES |= {"U8": 1, "BOOL": 1}


def recipes() -> st.SearchStrategy[bytes]:
    """Recipes, damaged recipes, mappings with absurd values at any key, deep and exploding YAML."""
    keys = ["merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "tokenizer", "seed"]
    keys += ["out_dtype", "tokenizer_source", "compat", "out_shard_size", "missing", "chat_template", "nonsense"]
    absurd = st.builds(
        lambda base, changes: yaml.safe_dump({**yaml.safe_load(base), **changes}).encode(),
        st.sampled_from(RECIPES),
        st.dictionaries(st.sampled_from(keys), odd_values(3), max_size=3),
    )
    numbers = st.one_of(st.floats(-2, 2), st.integers(0, 3), st.booleans(), st.lists(st.floats(0, 1), max_size=4))
    setting = st.one_of(numbers, st.lists(st.fixed_dictionaries({"value": numbers}, optional={"filter": st.text()})))
    honest = st.builds(
        lambda base, parameters: yaml.safe_dump({**yaml.safe_load(base), "parameters": parameters}).encode(),
        st.sampled_from(RECIPES),
        st.dictionaries(st.sampled_from(["weight", "density", "lambda", "t", "normalize"]), setting, max_size=3),
    )
    return st.one_of(
        honest, damaged(honest), damaged(st.sampled_from(RECIPES)), absurd, st.sampled_from(HOSTILE_YAML),
        st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")),
    )  # fmt: skip


RECIPES = [
    b"""merge_method: ties
base_model: base
models:
  - model: a+lora
    parameters: {weight: [0, 0.5, 1], density: 0.2}
  - model: {model: {path: b, revision: main}, lora: {path: c}}
    parameters:
      weight:
        - filter: self_attn
          value: [0.1, 0.9]
        - value: 0.5
parameters: {normalize: true, lambda: 1.0}
dtype: bfloat16
""",
    b"""merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources: [{model: b, layer_range: [2, 6], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
tokenizer: {source: union, pad_to_multiple_of: 64}
out_shard_size: 500M
chat_template: auto
""",
    b"""merge_method: slerp
modules: {text_decoder: {models: [{model: a}, {model: b}]}, vision_tower: {models: [{model: a}]}}
base_model: a
parameters: {t: 0.5}
seed: 3
compat: mergekit
""",
]
HOSTILE_YAML = [
    b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9))
    + b"merge_method: linear\n",
    b"[" * 20_000,
    b"{a: " * 20_000,
    b"- " * 20_000,
    b"? " * 20_000,
    b"- " * 300 + b"x",
    b"merge_method: linear\nchat_template: '" + b"[{" * 3_000 + b"'\n",
    b"&a [*a]",
    b"merge_method: &m [*m]\n",
    b"models: &m\n  - model: *m\nmerge_method: linear\n",
    b"!!python/object/apply:os.system ['true']\n",
    b"merge_method: !!binary aGk=\nmodels: !!set {a, b}\n",
    b"merge_method: 2001-01-01\nmodels: [{model: 2001-01-01}]\n",
    b"? [1, 2]\n: 3\nmerge_method: linear\n",
    b"out_shard_size: 1e400B\nmerge_method: linear\nmodels: [{model: a}]\n",
]


def check_recipe(path: Path, answer: Any) -> None:
    """An accepted recipe is one: it names an operator and models, and survives being written and read."""
    if answer is None:
        return
    text = answer.model_dump_json()
    if any(len(part) > 1 << 20 for part in text.split('"')):
        raise WrongAnswer("a recipe with a word of a megabyte was accepted")
    if not isinstance(answer.merge_method, str) or not answer.references():
        raise WrongAnswer(f"accepted without operator or models: {text[:200]}")
    again = type(answer)(**answer.model_dump())
    if not _same(again.model_dump(), answer.model_dump()):
        raise WrongAnswer(f"changed by writing and reading: {text[:200]}")


def _same(a: Any, b: Any) -> bool:
    """Equality under which NaN equals itself."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or (a == b and type(a) is type(b))


def _read_header(path: Path) -> Any:
    from core.merge.tensors import read_header

    return read_header(path)


def _read_recipe(path: Path) -> Any:
    from core.merge.recipe import load_recipe

    return load_recipe(path)


READERS = {
    r.name: r
    for r in (
        Reader("safetensors header", ("core.merge.tensors",), headers, _read_header, check_header, ".safetensors"),
        Reader("merge recipe", ("core.merge.recipe",), recipes, _read_recipe, check_recipe, ".yaml"),
    )
}


def cells(size: str) -> list[Cell]:
    return [
        Cell(name, {"cases": CASES[size]}, seed=0, modules=(*reader.modules, "core.config"))
        for name, reader in READERS.items()
    ]


def measure(cell: Cell) -> list[Row]:
    outcome = fuzz(READERS[cell.method], cell.settings["cases"], cell.seed)
    if outcome.failure:
        print(f"{cell.method}: {outcome.failure}")
    return [
        cell.row("cases", outcome.cases),
        cell.row("accepted", outcome.accepted),
        cell.row("failures", float(bool(outcome.failure))),
    ]


def goals(rows: Sequence[Row]) -> list[Goal]:
    found = []
    for name in READERS:
        mine = [r for r in rows if r.method == name and r.settings["cases"] >= CASES["default"]]
        cases = sum(r.value or 0 for r in mine if r.metric == "cases")
        failures = sum(r.value or 0 for r in mine if r.metric == "failures")
        holds = bool(mine) and failures == 0 and cases >= CASES["default"]
        target = f"{CASES['default']:,} cases, 0 failures"
        value = None if not mine else failures
        found.append(Goal(f"{name}: no hang, crash, half output or wrong answer", target, value, None, None, holds))
    return found


def page(rows: Sequence[Row], _folder: Path) -> str:
    lines = ["| reader | cases | accepted | failures |", "|---|---|---|---|"]
    for name in READERS:
        for cases in sorted({r.settings["cases"] for r in rows if r.method == name}):
            value = {r.metric: r.value for r in rows if r.method == name and r.settings["cases"] == cases}
            lines.append(f"| {name} | {value['cases']:.0f} | {value['accepted']:.0f} | {value['failures']:.0f} |")
    return "\n".join(lines)


BENCHMARK = Benchmark("faults_readers", "Readers against broken and hostile files", cells, measure, goals, page)

if __name__ == "__main__":
    main(BENCHMARK)
