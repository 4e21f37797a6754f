"""Progress of long work: a bar in a terminal, and a hook by which the task layer shows the same in its UI."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
Listener = Callable[[str, float], None]
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send ``(description, fraction 0..1)`` of every :func:`progress` in this context to ``listener`` too."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Progress:
    """A running count towards ``total``; use :func:`track` or :func:`progress` to make one."""

    def __init__(self, description: str, total: float, unit: str):
        self.description, self.total, self.done = description, max(float(total), 1e-9), 0.0
        self._bar = tqdm(total=total, desc=description, unit=unit, leave=False, disable=not sys.stderr.isatty())

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self._bar.update(amount)
        listener = _listener.get()
        if listener is not None:
            listener(self.description, min(1.0, self.done / self.total))


@contextmanager
def track(description: str, total: float, unit: str = "it") -> Iterator[Progress]:
    """``with track("merge", n, "tensor") as p: ... p.advance()``"""
    p = Progress(description, total, unit)
    try:
        yield p
    finally:
        p._bar.close()


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate over ``items`` with a bar."""
    if total is None:
        items = list(items)
        total = len(items)
    with track(description, total, unit) as p:
        for item in items:
            yield item
            p.advance()
