"""What an MLflow server runs: a packaged model. MLflow stores this file, not a pickle of it."""

from pathlib import Path

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from core.packages import open_package


class ServedPackage(PythonModel):
    """Columns ``text``, with several tasks ``task``, for pair tasks ``pair`` -> ``label``, ``probability``."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the package."""
        self.package = open_package(Path(context.artifacts["package"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """One line a text, in the order given."""
        tasks = model_input["task"] if "task" in model_input else pd.Series([None] * len(model_input))
        answers: dict[int, object] = {}
        for task in tasks.drop_duplicates().tolist():
            rows = [i for i, t in enumerate(tasks.tolist()) if t == task or (t is None and task is None)]
            part = model_input.iloc[rows]
            second = part["pair"].fillna("") if "pair" in part else pd.Series([""] * len(part))
            pairs = second.tolist() if second.astype(bool).any() else None
            answers |= dict(zip(rows, self.package.predict(part["text"].tolist(), pairs, task), strict=True))
        found = [answers[i] for i in range(len(model_input))]
        return pd.DataFrame({"label": [a.label for a in found], "probability": [a.probability for a in found]})


mlflow.models.set_model(ServedPackage())
