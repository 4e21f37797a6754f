"""A process that imports once what a run needs, and forks a child for each command.

A kill test wants the work of a run killed, not its imports, which cost more. The children are whole runs of the
command: own process group, own output, ended like any process. ``python -m benchmarks.warm MODULES`` imports the
modules named in that file, then takes requests on its input, a line of JSON each, and tells on its output which child
began and ended.
"""

import importlib
import json
import os
import random
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# Run before the command, it leaves the names of the modules that were imported.
NOTE = "import atexit, sys\natexit.register(lambda: open({path!r}, 'w').write('\\n'.join(sys.modules)))\n"


class Warm:
    """The parent, seen from the benchmark.

    Args:
        modules: file of module names.
        environment: of all children.
    """

    def __init__(self, modules: Path, environment: dict[str, str], folder: Path):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.warm", str(modules)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, env=environment,
        )  # fmt: skip
        self._buffer = b""
        self.codes: dict[int, int] = {}

    def start(self, arguments: tuple[str, ...], output: Path) -> "Forked":
        """Fork a child that runs the command."""
        request = {"arguments": arguments, "output": str(output)}
        self._process.stdin.write((json.dumps(request) + "\n").encode())
        self._process.stdin.flush()
        while True:
            for message in self.listen(1):
                if "begun" in message:
                    return Forked(self, message["begun"], arguments)

    def listen(self, wait_s: float) -> list[dict[str, int]]:
        """What the parent tells within the time; children that ended are remembered.

        Raises:
            RuntimeError: the parent died.
        """
        pipe = self._process.stdout
        if not select.select([pipe], [], [], wait_s)[0]:
            return []
        data = os.read(pipe.fileno(), 1 << 16)
        if not data:
            raise RuntimeError(f"the warm process ended with {self._process.wait()}")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self.codes |= {m["ended"]: m["code"] for m in messages if "ended" in m}
        return messages

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Forked:
    """A child, with what is used of :class:`subprocess.Popen`."""

    def __init__(self, warm: Warm, pid: int, arguments: tuple[str, ...]):
        self._warm, self.pid, self.args = warm, pid, arguments

    @property
    def returncode(self) -> int | None:
        return self._warm.codes.get(self.pid)

    def poll(self) -> int | None:
        self._warm.listen(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = 1.0 if until is None else until - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(list(self.args), timeout)
            self._warm.listen(min(left, 1.0))
        return self.returncode


def serve() -> None:
    """Fork on request and reap, until the input ends."""
    while True:
        if select.select([sys.stdin], [], [], 0.02)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _command(**request)
            _tell(begun=pid)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _tell(ended=ended[0], code=os.waitstatus_to_exitcode(ended[1]))


def _tell(**message: Any) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


def _command(arguments: list[str], output: str) -> None:
    """Become the command; does not return."""
    os.setsid()
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(source, number)
    random.seed()  # names that libraries draw would else be those of every other child
    sys.argv = ["transferopt", *arguments]
    from flows.cli import main

    main()
    sys.exit(0)


if __name__ == "__main__":
    for name in Path(sys.argv[1]).read_text().split():
        if name not in sys.modules and name != "__main__":
            with suppress(Exception):  # made by a library while it ran, or meant for another system
                importlib.import_module(name)
    serve()
