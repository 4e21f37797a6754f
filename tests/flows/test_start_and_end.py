"""What a command does not spend its first and last seconds on."""

import subprocess
import sys

import pytest
from prefect.settings import get_current_settings

from flows.runtime import _heartbeats
from tasks import embedded


def test_at_its_end_a_command_does_not_look_for_garbage():
    told_after_ours = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); import tasks"
    ended = subprocess.run([sys.executable, "-c", told_after_ours], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True"]


@pytest.mark.parametrize("is_embedded", [True, False])
def test_heartbeats_go_to_servers_that_somebody_watches(monkeypatch, is_embedded):
    monkeypatch.setattr(embedded, "running", lambda: is_embedded)
    with _heartbeats():
        assert (get_current_settings().flows.heartbeat_frequency is None) is is_embedded
    assert get_current_settings().flows.heartbeat_frequency
