"""The core and the light commands work where Prefect, MLflow and Ray are not installed."""

import os
import subprocess
import sys

import pytest

BLOCK = """
import sys

class Absent:
    names = {"prefect", "mlflow", "ray", "prefect_ray"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(program, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + program, *arguments], capture_output=True, text=True, timeout=240, env=os.environ
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_every_core_module_imports():
    program = (
        "import importlib, pkgutil, core\n"
        "names = [m.name for m in pkgutil.walk_packages(core.__path__, 'core.')]\n"
        "[importlib.import_module(n) for n in names]\n"
        "print(len(names))"
    )
    assert int(run(program).split()[-1]) > 50


@pytest.mark.parametrize("command", [["--help"], ["assets"], ["merge", "--help"], ["diagnose", "--help"]])
def test_light_commands_work(command):
    assert "Traceback" not in run("from flows.cli import main\nmain()", *command)


def test_merge_works(tmp_path):
    from tests.tiny_experts import base_folder

    for seed in (0, 1):
        base_folder(tmp_path / f"m{seed}", seed=seed)
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: linear\nmodels:\n"
        f"  - {{model: {tmp_path / 'm0'}, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {tmp_path / 'm1'}, parameters: {{weight: 3}}}}\n"
    )
    run("from flows.cli import main\nmain()", "merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()
