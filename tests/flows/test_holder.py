"""A second merge into one folder is refused and says which process holds it."""

import subprocess
import sys

import pytest

from core.state import StateError
from flows.cli.holder import holders
from flows.cli.merge import merge
from tests.tiny_checkpoints import write_llama, write_recipe

HOLD = """
import fcntl, sys, time
journal = open(sys.argv[1], "a+b")
fcntl.flock(journal, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def recipe(tmp_path):
    models = [write_llama(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    return write_recipe(tmp_path / "r.yml", "linear", models, per_model=[{"weight": 0.5}] * 2)


def test_the_holder_is_named_and_only_while_it_holds(recipe, tmp_path):
    out = tmp_path / "merged"
    command = [sys.executable, "-c", HOLD, str(tmp_path / "merged.part.journal")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with pytest.raises(StateError, match=rf"being written by another process .*held by pid {child.pid} \(.*python"):
            merge(recipe, out)
        assert not out.exists()
        child.kill()
    assert holders(out) == []
    merge(recipe, out)
    assert (out / "model.safetensors").exists()


def test_other_refusals_stay_as_they_are(recipe, tmp_path):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine").write_text("kept")
    with pytest.raises(StateError, match="exists and is not the result of this recipe") as refusal:
        merge(recipe, out)
    assert "held by" not in str(refusal.value)
