"""The served model, as MLflow runs it: a file that is logged with the model and executed when the model is loaded.

Nothing imports it. It runs wherever somebody says `mlflow.pyfunc.load_model("models:/<name>@champion")`, so it needs
nothing of this project: the code of `training/model.py` travels among the model's artifacts and is loaded from there,
under a name of its own, so that two versions in one process each run their own code and no other `tasks` is met.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
from mlflow.pyfunc.model import PythonModel, PythonModelContext

TYPES = {"number": pa.float64(), "category": pa.string()}


class ServedModel(PythonModel):
    """Feature columns in, calibrated probabilities or values out. The signature has seen to it that all are there."""

    def load_context(self, context: PythonModelContext) -> None:
        self.model = _load_code(Path(context.artifacts["code"])).Model.load(Path(context.artifacts["model"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> Any:
        columns = {
            feature.name: pa.array(model_input[feature.name], TYPES[feature.kind], from_pandas=True)
            for feature in self.model.spec.features
        }
        return self.model.predict(pa.table(columns))


def _load_code(path: Path) -> ModuleType:
    name = f"evergreen_model_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # a dataclass looks its module up there
        spec.loader.exec_module(module)
    return sys.modules[name]


mlflow.models.set_model(ServedModel())
