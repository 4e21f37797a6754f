"""Fuzzing of file readers: cases by hypothesis, and what counts as misbehaving.

A case passes when the reader returns (and its answer survives an independent check) or refuses with a ``ValueError`` or
``FileNotFoundError`` that says something, within :data:`LIMIT_S` seconds.
"""

import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

LIMIT_S = 5
LONGEST_MESSAGE = 2000  # beyond what it quotes of the input


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
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
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


def samples(reader: Reader, count: int, first_seed: int = 0) -> list[bytes]:
    """Generated file contents, without reading them."""
    found: list[bytes] = []

    @seed(first_seed)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(reader.cases())
    def collect(data: bytes) -> None:
        found.append(data)

    collect()
    return found


def one_case(reader: Reader, path: Path) -> bool:
    """Whether the file is accepted; raises when the reader misbehaves."""
    answer = None
    with time_limit():
        try:
            answer = reader.read(path)
        except (ValueError, FileNotFoundError) as error:
            if not 0 < len(str(error).strip()) <= LONGEST_MESSAGE + path.stat().st_size:
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
