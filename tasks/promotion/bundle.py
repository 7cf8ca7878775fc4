"""bundle: the model to serve as a folder that `mlflow.pyfunc.load_model` takes anywhere.

It needs nothing of this project and no pickle: pyfunc.py and the code of training/model.py travel in the folder.
"""

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.promotion.tracking import load_mlflow

if TYPE_CHECKING:
    import pyarrow as pa

SHIPPED = ("mlflow", "numpy", "pandas", "pyarrow", "xgboost", "xgboost-cpu")  # what serving a model needs
TYPES = {"number": "double", "category": "string"}  # a feature's kind, as a type of MLflow's


@dataclass(frozen=True)
class Bundle:
    """The model to serve.

    Attributes:
        model: the file of the model that serves.
        twin: the file of its twin, which has not seen the holdout.
        features: the columns that it wants, each {name, kind}.
        example: some rows, to show how to ask it.
        per_class: whether it answers with a probability for each class.
    """

    model: Path
    twin: Path
    features: Sequence[Mapping[str, str]]
    example: "pa.Table"
    per_class: bool = False

    def save(self, folder: Path, *, run_id: str, model_id: str, location: str) -> None:
        """Write it as MLflow's model of a run; `location` is where MLflow keeps it."""
        mlflow, here = load_mlflow(), Path(__file__).parent
        code = here.parent / "training" / "model.py"
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(here / "pyfunc.py"),
            artifacts={"model": str(self.model), "twin": str(self.twin), "code": str(code)},
            signature=self._signature(mlflow),
            input_example=self.example.to_pandas(),
            pip_requirements=list(_pin_requirements()),  # given: MLflow takes six seconds to find them
            mlflow_model=mlflow.models.Model(
                artifact_path=location, run_id=run_id, model_uuid=model_id, model_id=model_id
            ),
        )

    def _signature(self, mlflow: Any) -> Any:
        import numpy as np

        types = mlflow.types
        columns = [types.ColSpec(TYPES[feature["kind"]], feature["name"]) for feature in self.features]
        answer = types.TensorSpec(np.dtype("float64"), (-1, -1) if self.per_class else (-1,))
        return mlflow.models.ModelSignature(types.Schema(columns), types.Schema([answer]))


def _pin_requirements() -> Iterator[str]:
    for name in SHIPPED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name}=={importlib.metadata.version(name)}"
