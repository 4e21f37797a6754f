"""The notebook-style example runs as it stands, on a tiny encoder, and imports neither Prefect nor MLflow."""

import os
import subprocess
import sys
from pathlib import Path

from tests import tiny_experts

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "import runpy, sys\nrunpy.run_path(sys.argv[1], run_name='__main__')\n"
    "found = {'prefect', 'mlflow', 'ray'} & set(sys.modules)\nsys.exit(f'imported {found}' if found else 0)"
)


def test_the_example_runs(tmp_path):
    base = tiny_experts.base_folder(tmp_path / "base")
    environment = {
        **os.environ,
        "TRANSFEROPT_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
        "EXAMPLE_BASE": str(base),
        "EXAMPLE_EPOCHS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / "docs" / "example.py")],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "searched against ties: p =" in done.stdout
    assert "model.safetensors" in done.stdout


def test_cells_alternate_between_words_and_code():
    cells = (ROOT / "docs" / "example.py").read_text().split("# %%")[1:]
    words = [c for c in cells if c.startswith(" [markdown]")]
    assert len(words) >= 6
    assert len(cells) - len(words) >= 6
