"""Who holds an output folder: the processes that have a merge's journal open, named where a second merge is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from core.state import StateError

LONGEST = 100  # characters of a command that are shown


@contextmanager
def naming_the_holder(out: Path) -> Iterator[None]:
    """Add to a StateError which process works on ``out``.

    Raises:
        StateError: as raised inside, with the holders if there are any.
    """
    try:
        yield
    except StateError as error:
        found = holders(out)
        if not found:
            raise
        raise StateError(f"{error}; held by {' and '.join(found)}") from error


def holders(out: Path) -> list[str]:
    """``pid N (command)`` of each process that has a journal of a merge into ``out`` open.

    Processes of other users are not looked into: without root the system does not tell what they have open.
    """
    prefix = str(out.resolve()) + ".part.journal"
    found = []
    for process in psutil.process_iter():
        try:
            if any(f.path.startswith(prefix) for f in process.open_files()):
                command = " ".join(process.cmdline()) or process.name()
                found.append(f"pid {process.pid} ({command[:LONGEST]})")
        except psutil.Error:
            continue
    return found
