"""Coverage-guided fuzzing of the readers with atheris (libFuzzer): bytes are changed towards branches not yet taken.

It begins with what the generator of :mod:`benchmarks.fuzzing` makes, sound files among it, and counts its own cases.
libFuzzer ends its process, so each reader has a child: ``python -m benchmarks.fuzz_coverage READER CASES SEED``.
Atheris is the extra ``fuzz``; where it is not installed nothing is measured.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import fuzz_data, fuzz_merge
from benchmarks.fuzzing import Outcome, Reader, one_case, samples

READERS = {r.name: r for r in (*fuzz_merge.READERS, *fuzz_data.READERS)}
SAMPLES, LONGEST_BYTES = 200, 4096
LIMITS = ("-timeout=0", "-rss_limit_mb=6000", "-detect_leaks=0")  # time is limited by one_case


def available() -> bool:
    return importlib.util.find_spec("atheris") is not None


def fuzz_guided(reader: Reader, cases: int, seed: int = 0) -> Outcome:
    """Run so many cases in a child; a child that dies is a failure with the end of its output."""
    command = [sys.executable, "-m", "benchmarks.fuzz_coverage", reader.name, str(cases), str(seed)]
    plain = os.environ | {"NUMBA_DISABLE_JIT": "1"}  # numba cannot compile what atheris has instrumented
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=plain)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"cases"')]
    if not lines:
        return Outcome(failure=f"the process ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return Outcome(**json.loads(lines[-1]))


def run(reader: Reader, cases: int, seed: int) -> None:
    """Fuzz in this process, which ends with it; the outcome is the last line printed."""
    import atheris

    with atheris.instrument_imports(include=["core"]):
        for module in reader.modules:
            importlib.import_module(module)
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder) / "corpus", Path(folder) / f"case{reader.suffix}"
        corpus.mkdir()
        for number, data in enumerate(samples(reader, SAMPLES, seed)):
            (corpus / str(number)).write_bytes(data)

        def one(data: bytes) -> None:
            outcome.cases += 1
            path.write_bytes(data)
            try:
                outcome.accepted += one_case(reader, path)
            except Exception as error:  # whatever a reader lets through is what is looked for
                outcome.failure = f"{type(error).__name__}: {error}; input {data[:300]!r}"
            if outcome.failure or outcome.cases == cases:
                print(json.dumps(vars(outcome)), flush=True)
                os._exit(0)

        atheris.Setup([sys.argv[0], f"-seed={seed + 1}", f"-max_len={LONGEST_BYTES}", *LIMITS, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    run(READERS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]))
