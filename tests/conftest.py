"""Fixtures for all tests: a home of their own, and where shared data may lie."""

import os
import tempfile
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Prefect reads its settings when it is imported, which a test file may do before the package says the same.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
PREFECT = tempfile.TemporaryDirectory(prefix="prefect-")
os.environ["PREFECT_HOME"] = PREFECT.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole flows and benchmarks first: begun last, the longest file would run alone beside an idle process."""
    slow = ("flows", "tasks", "benchmarks")
    items.sort(key=lambda item: Path(item.nodeid).parts[1] not in slow)


@pytest.fixture(scope="session", autouse=True)
def _quiet_environment(tmp_path_factory):
    """Tests never touch the user's home: caches, tracking database and Prefect state go to a session folder.

    Assets already downloaded are reused (they are large and checked by hash), so they stay where the user has them.
    """
    import prefect.server.api.server  # noqa: F401  (two threads that import it at once can see it half made)

    from core.state import home

    patch = pytest.MonkeyPatch()
    patch.setenv("TRANSFEROPT_ASSETS", os.environ.get("TRANSFEROPT_ASSETS", str(home() / "assets")))
    root = tmp_path_factory.mktemp("home")
    patch.setenv("TRANSFEROPT_HOME", str(root))
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    patch.delenv("PREFECT_API_URL", raising=False)
    if (SHARED / "data").is_dir():
        patch.setenv("TRANSFEROPT_DATA", str(SHARED / "data"))
    yield
    from tasks import embedded

    embedded.stop()  # a worker process of pytest ends without its exit handlers, and a server would stay
    patch.undo()
    PREFECT.cleanup()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh TRANSFEROPT_HOME for one test."""
    monkeypatch.setenv("TRANSFEROPT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """../shared/data; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data")
    return SHARED / "data"
