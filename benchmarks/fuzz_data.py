"""Fuzz cases of the readers of data: TFRecord files with NAS-Bench-101 records, genotypes, task files."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from benchmarks.fuzz_merge import HOSTILE_YAML
from benchmarks.fuzzing import Reader, WrongAnswer, damaged, odd_values


def record_files() -> st.SearchStrategy[bytes]:
    """TFRecord files: well framed with sound or odd records, damaged, and noise."""
    numbers = st.floats(0, 1)
    sound = st.builds(
        _record, st.binary(min_size=16, max_size=16), st.sampled_from([4, 12, 36, 108]), numbers, numbers, numbers
    )
    odd = st.builds(lambda value: json.dumps(value).encode(), odd_values(2))
    framed = st.lists(st.one_of(sound, odd, st.binary(max_size=12)), max_size=3).map(_framed)
    honest = st.lists(sound, max_size=3).map(_framed)
    return st.one_of(honest, damaged(honest), framed, damaged(framed), st.binary(max_size=60))


def _record(key: bytes, epochs: int, valid: float, test: float, seconds: float) -> bytes:
    """A NAS-Bench-101 record: JSON with the metrics as a base64 protocol buffer."""
    evaluation = b"".join(
        bytes([number << 3 | 1]) + struct.pack("<d", value) for number, value in ((2, seconds), (4, valid), (5, test))
    )
    metrics = b"\x0a" + bytes([len(evaluation)]) + evaluation + b"\x10\x96\x01"
    names = "input,conv3x3-bn-relu,output"
    return json.dumps([key.hex(), epochs, "010001000", names, base64.b64encode(metrics).decode()]).encode()


def _framed(records: list[bytes]) -> bytes:
    from core.data.tfrecord import masked_crc32c

    parts = []
    for data in records:
        length = struct.pack("<Q", len(data))
        parts += [length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))]
    return b"".join(parts)


def _read_records(path: Path) -> Any:
    from core.data.tfrecord import records
    from core.nas.oracles.nb101_official import read_record

    found = list(records(path))
    return found, [read_record(data, str(path)) for data in found]


def check_records(path: Path, answer: Any) -> None:
    """What was accepted frames to the same file again, and its numbers are those that stand in it."""
    if answer is None:
        return
    raw, parsed = answer
    if _framed(raw) != path.read_bytes():
        raise WrongAnswer("the accepted records do not make up the file")
    for data, (key, epochs, _, numbers) in zip(raw, parsed, strict=True):
        text = json.loads(data)
        if text[0] != key or int(text[1]) != epochs or not all(isinstance(n, float) for n in numbers):
            raise WrongAnswer(f"record {text} read as {key}, {epochs}, {numbers}")


def genotypes() -> st.SearchStrategy[bytes]:
    """First line a space, then a genotype: right ones of that or another space, damaged, or noise."""
    import numpy as np

    from core.nas.spaces import SPACES, get_space

    names = SPACES.names()
    texts = [get_space(n).format(get_space(n).sample(np.random.default_rng(i))) for n in names for i in range(4)]
    odd = st.sampled_from(["(" * 5000, "[[" * 3000, "9" * 5000])
    line = st.one_of(st.sampled_from(texts), st.text(max_size=30), odd).map(lambda t: t.encode("utf-8", "replace"))
    some = st.one_of(damaged(st.sampled_from([t.encode() for t in texts])), line)
    honest = st.sampled_from([n.encode() + b"\n" + t.encode() for n, t in zip(np.repeat(names, 4).tolist(), texts)])
    mixed = st.builds(lambda name, text: name.encode() + b"\n" + text, st.sampled_from(names), some)
    return st.one_of(mixed, damaged(honest))


def _read_genotype(path: Path) -> Any:
    from core.nas.spaces import get_space

    name, _, text = path.read_bytes().decode().partition("\n")
    space = get_space(name)
    return space, space.parse(text)


def check_genotype(_path: Path, answer: Any) -> None:
    """An accepted genotype survives writing and reading, and spelling as tokens."""
    if answer is None:
        return
    space, genotype = answer
    if space.parse(space.format(genotype)) != genotype:
        raise WrongAnswer(f"{space.name}: {genotype} changed by writing and reading")


def task_files() -> st.SearchStrategy[bytes]:
    """Task files, damaged ones, mappings with absurd values, hostile YAML."""
    known = ["kind", "source", "fields", "labels", "metric", "template", "label_words", "version", "summary", "name"]
    absurd = st.builds(
        lambda base, changes: yaml.safe_dump({**yaml.safe_load(base), **changes}).encode(),
        st.sampled_from(TASKS),
        st.dictionaries(st.sampled_from([*known, "nonsense"]), odd_values(2), max_size=3),
    )
    return st.one_of(damaged(st.sampled_from(TASKS)), absurd, st.sampled_from(HOSTILE_YAML), st.binary(max_size=60))


TASKS = [
    b"""kind: single
source: {path: data.csv}
fields: {text: text, label: label}
labels: ['no', 'yes']
metric: accuracy
template: "{text} It was {mask}."
label_words: [terrible, great]
""",
    b"""kind: pair
source: {local: text/mrpc}
fields: {text: a, pair: b, label: y}
labels: [different, same]
metric: f1
""",
]


MINIMAL = [
    b"kind: single\nsource: {local: text/x}\nlabels: [a, b]\nmetric: accuracy\n",
    b"kind: pair\nsource: {path: x.csv}\nfields: {text: p, pair: q, label: z}\nlabels: [a, b]\nmetric: f1_macro\n",
]


def _read_task(path: Path) -> Any:
    from core.data.tasks import load_task

    return load_task(path)


def check_task(_path: Path, answer: Any) -> None:
    """An accepted task has a name, a kind and a metric."""
    if answer is not None and not (answer.name and answer.kind and answer.metric):
        raise WrongAnswer(f"accepted without name, kind or metric: {answer!r}"[:300])


READERS = (
    Reader(
        "TFRecord", ("core.data.tfrecord", "core.nas.oracles.nb101_official"), record_files, _read_records,
        check_records, ".tfrecord",
    ),
    Reader("genotype", ("core.nas.spaces",), genotypes, _read_genotype, check_genotype, ".txt"),
    Reader("task file", ("core.data.tasks",), task_files, _read_task, check_task, ".yaml"),
)  # fmt: skip
