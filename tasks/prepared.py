"""Empty databases of MLflow and Prefect, migrated once: a fresh home copies them instead of migrating for seconds.

``python -m tasks.prepared`` makes them (``make install`` does) inside the virtual environment, under the version of the
library that they belong to. Without them, or with a database of one's own, the libraries migrate as they always do.
"""

import asyncio
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from core.state import atomic_path, home

FOLDER = Path(sys.prefix) / "share" / "transferopt"
PLACES = {"mlflow": "mlflow.db", "prefect": "prefect/prefect.db"}  # below the home, as the two libraries look for them


def prepared(library: str) -> Path:
    """Where the empty database of the installed version lies, if it was made."""
    return FOLDER / f"{library}-{version(library)}.db"


def place() -> None:
    """Give a home without databases the prepared ones; whatever is there stays."""
    root = home()
    ours = {
        "mlflow": os.environ.get("MLFLOW_TRACKING_URI") == f"sqlite:///{root / PLACES['mlflow']}",
        "prefect": os.environ.get("PREFECT_HOME") == str(root / "prefect")
        and "PREFECT_API_DATABASE_CONNECTION_URL" not in os.environ,
    }
    for library, name in PLACES.items():
        made = prepared(library)
        if ours[library] and made.exists() and not (root / name).exists():
            with atomic_path(root / name) as temporary:
                temporary.write_bytes(made.read_bytes())


def make() -> None:
    """Let both libraries create and migrate an empty database, and keep the two files."""
    import tasks  # noqa: F401  (switches telemetry off)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFECT_HOME"] = str(Path(folder) / "prefect")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/{PLACES['mlflow']}"
        import mlflow
        from prefect.server.database import provide_database_interface

        mlflow.MlflowClient().search_experiments(max_results=1)
        asyncio.run(_migrate(provide_database_interface()))
        for library, name in PLACES.items():
            _keep(Path(folder) / name, prepared(library))


async def _migrate(database) -> None:
    await database.create_db()
    await (await database.engine()).dispose()


def _keep(source: Path, target: Path) -> None:
    """Copy a database with what still stands in its log."""
    import sqlite3

    with atomic_path(target) as temporary:
        temporary.unlink()
        there, here = sqlite3.connect(source), sqlite3.connect(temporary)
        there.backup(here)
        here.close()
        there.close()


if __name__ == "__main__":
    make()
