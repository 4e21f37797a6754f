"""The core and the light commands work in an environment of what the base installation needs, and nothing else.

That is a virtual environment whose packages are links to ours: those that pyproject's dependencies reach without an
extra. Prefect, MLflow and Ray are not among them.
"""

import os
import subprocess
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("prefect", "mlflow", "ray", "prefect_ray")


def reached(requirements):
    """The distributions, by name, that must be installed for these requirements."""
    todo, seen = [(Requirement(r), "") for r in requirements], {}
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if wanted in seen.setdefault(name, set()):
                continue
            seen[name].add(wanted)
            todo += [(Requirement(r), wanted) for r in distribution(name).requires or []]
    return sorted(seen)


@pytest.fixture(scope="module")
def light_python(tmp_path_factory):
    """Python of an environment without any extra."""
    folder = tmp_path_factory.mktemp("light") / "venv"
    venv.create(folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for ours in ("core", "tasks", "flows"):
        (packages / ours).symlink_to(ROOT / ours)
    for name in reached(needed):
        files = distribution(name).files or []
        for top in {f.parts[0] for f in files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution(name).locate_file(top))
    return folder / "bin" / "python"


@pytest.fixture
def run(light_python, tmp_path):
    def call(program, *arguments):
        done = subprocess.run(
            [light_python, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            cwd=tmp_path,  # the repository's folder mlflow/ would be a namespace package
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return call


def test_it_holds_no_prefect_mlflow_or_ray(run):
    found = run(f"from importlib.util import find_spec\nprint([n for n in {ABSENT} if find_spec(n)])")
    assert found.strip() == "[]"


def test_every_core_module_imports(run):
    program = (
        "import importlib, pkgutil, core\n"
        "names = [m.name for m in pkgutil.walk_packages(core.__path__, 'core.')]\n"
        "[importlib.import_module(n) for n in names]\n"
        "print(len(names))"
    )
    assert int(run(program).split()[-1]) > 50


@pytest.mark.parametrize("command", [["--help"], ["assets"], ["merge", "--help"], ["diagnose", "--help"]])
def test_light_commands_work(run, command):
    assert "Traceback" not in run("from flows.cli import main\nmain()", *command)


def test_merge_works(run, tmp_path):
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
