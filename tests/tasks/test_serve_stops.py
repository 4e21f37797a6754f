"""Servers that are asked to end while they start."""

import signal

import pytest

from tasks import servers


class Starting:
    """Children that take for ever to come up; the signal arrives meanwhile."""

    number = signal.SIGINT

    def __init__(self, config):
        pass

    def __enter__(self):
        signal.raise_signal(self.number)
        raise AssertionError("the start went on")

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_heard_while_servers_start(monkeypatch, home, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(servers, "check", lambda _: None)
    monkeypatch.setattr(servers, "Servers", type("S", (Starting,), {"number": number}))
    try:
        servers.serve(None, lambda _: pytest.fail("nothing was ready"))
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
