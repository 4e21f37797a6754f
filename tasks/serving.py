"""Models in MLflow: logged with signature and a synthetic example, registered, promoted only on a significant gain."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema

from core.evaluate.statistics import stratified_bootstrap
from core.packages import CARDS, described
from tasks import mlflow_store
from tasks.hits import Hits

SERVED = Path(__file__).with_name("served_model.py")
CHAMPION, CHALLENGER = "champion", "challenger"
EXAMPLE = "An example sentence, written for this model's documentation."


class Untried:
    """MLflow's pyfunc flavor without its trial of the example: the flow has tried the package (tasks.register_model).

    To try it once more MLflow would import torch and load the model in the process that delivers, for six seconds.
    """

    @staticmethod
    def save_model(validate_serving_input: bool, **settings: Any) -> None:
        mlflow.pyfunc.save_model(**settings)


def log_model(run_id: str, package: Path, name: str, alias: str, tags: dict[str, str]) -> None:
    """Log a packaged model to a run, register a version, and set its alias (idempotent by the package's hash)."""
    client = mlflow_store.client()
    known = client.search_model_versions(f"name='{name}'") if _exists(name) else []
    if any(v.tags.get("sha256") == tags["sha256"] and v.run_id == run_id for v in known):
        return
    task, pair = min(described(package).pairs.items())
    second = {"pair": [EXAMPLE]} if pair else {}  # refused by a task of single texts
    inputs = Schema(
        [
            ColSpec("string", "text"),
            ColSpec("string", "task", required=False),
            ColSpec("string", "pair", required=False),
        ]
    )
    outputs = Schema([ColSpec("string", "label"), ColSpec("double", "probability")])
    with mlflow.start_run(run_id=run_id):
        mlflow.models.Model.log(
            artifact_path=None,
            name="model",
            flavor=Untried,
            flavor_name="mlflow.pyfunc",
            validate_serving_input=False,
            python_model=str(SERVED),
            artifacts={"package": str(package)},
            signature=ModelSignature(inputs, outputs),
            input_example=pd.DataFrame({"text": [EXAMPLE], "task": [task]} | second),
            registered_model_name=name,
            pip_requirements=["transferopt"],
        )
    versions = client.search_model_versions(f"name='{name}'")
    version = max(versions, key=lambda v: int(v.version)).version
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, alias, version)
    promote(name)


def promote(name: str) -> bool:
    """Make the challenger champion when there is none, or when it is significantly better at what the champion does.

    Both versions carry which test items of each task they got right (tag ``hits``). The challenger must have every task
    of the champion, tried on the same items (a smoke run is not, nor another seed's draw); the 95 % interval of the
    mean paired difference, items drawn anew within each task, must lie above zero.
    """
    client = mlflow_store.client()
    challenger = client.get_model_version_by_alias(name, CHALLENGER)
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        client.set_registered_model_alias(name, CHAMPION, challenger.version)
        return True
    if challenger.version == champion.version:
        return False
    mine, theirs = (Hits.of(v.tags) for v in (challenger, champion))
    if not theirs or any(task not in mine or mine[task].items != theirs[task].items for task in theirs):
        return False
    gain = stratified_bootstrap({t: mine[t].right.astype(float) - theirs[t].right for t in theirs})
    client.set_model_version_tag(name, challenger.version, "gain_over_champion", f"{gain.mean:.4f}")
    if gain.low is not None and gain.low > 0:
        client.set_registered_model_alias(name, CHAMPION, challenger.version)
        return True
    return False


def _exists(name: str) -> bool:
    try:
        mlflow_store.client().get_registered_model(name)
    except MlflowException:
        return False
    return True


def package_of(model: str) -> Path:
    """Files of a registered model: ``name`` (its champion), ``name@alias`` or ``name/version``.

    Raises:
        ValueError: no such model, alias or version.
    """
    name, at, alias = model.partition("@")
    name, slash, version = name.partition("/")
    uri = f"models:/{name}/{version}" if slash else f"models:/{name}@{alias if at else CHAMPION}"
    try:
        root = Path(mlflow.artifacts.download_artifacts(f"{uri}/artifacts/"))
    except MlflowException as error:
        known = ", ".join(m.name for m in mlflow_store.client().search_registered_models()) or "none"
        raise ValueError(
            f"no folder and no registered model {model!r} (registered: {known}): {error.message}"
        ) from None
    found = next((path for card in CARDS for path in root.rglob(card)), None)
    if found is None:
        raise ValueError(f"registered model {model!r} holds no package of a flow ({', '.join(CARDS)})")
    return found.parent
