"""The notebooks run from top to bottom in a fresh project, define nothing, and are stored without what they showed."""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tasks import params
from tasks.promotion.registry import open_registry
from tasks.promotion.runs import Bundle
from tasks.training import evaluate, model, train
from tests.conftest import FEATURES_SQL, KEY, Task, raw_params, write_params, write_sources
from tests.registries import place_tables
from tests.tasks import small

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def nodes(path: Path) -> Iterator[ast.AST]:
    for cell in code(path):
        yield from ast.walk(ast.parse(cell.source))


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@each_notebook
def test_a_notebook_defines_nothing(path: Path) -> None:
    assert [ast.unparse(node) for node in nodes(path) if isinstance(node, DEFINITIONS)] == []


@each_notebook
def test_a_notebook_imports_the_project_and_no_flow(path: Path) -> None:
    modules = {(node.module or "").split(".")[0] for node in nodes(path) if isinstance(node, ast.ImportFrom)}
    assert "tasks" in modules
    assert "flows" not in modules


@each_notebook
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    assert [cell.id for cell in code(path) if cell.outputs or cell.execution_count] == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Periods that one notebook has made, so that the next does not make them again. It changes no byte."""
    return tmp_path_factory.mktemp("periods")


@pytest.fixture
def kernel(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel needs, and nothing of the project's that a clone has not."""
    monkeypatch.setenv("EVERGREEN_PERIODS", str(cache))
    monkeypatch.setenv("EVERGREEN_PII_KEY", KEY)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    for name in ("EVERGREEN_HOME", "MLFLOW_TRACKING_URI", "MPLBACKEND"):  # the last: as a person sees it, with pictures
        monkeypatch.delenv(name, raising=False)


@each_notebook
def test_a_notebook_runs_right_after_a_clone(path: Path, tmp_path: Path, kernel: None) -> None:  # noqa: ARG001
    copy_tasks(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    notebook = execute(path, tmp_path)
    assert pictures(notebook) > 0
    assert read_output(notebook, "stderr") == ""


@each_notebook
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_a_notebook_reads_whatever_table_params_names(
    path: Path,
    task: Task,
    tmp_path: Path,
    kernel: None,  # noqa: ARG001
) -> None:
    copy_tasks(tmp_path)
    (tmp_path / "tasks" / "features.sql").write_text(FEATURES_SQL)
    write_sources(tmp_path / "source", days=40, per_day=60, seed=0)
    raw = raw_params(task, 40)
    raw["evaluate"]["costs"] = None
    write_params(raw, tmp_path)
    notebook = execute(path, tmp_path)
    assert pictures(notebook) > 0
    assert read_output(notebook, "stderr") == ""
    assert re.search(r"^orders: .*\b\d[\d,]* (rows|of)", read_output(notebook, "stdout"), re.MULTILINE)


def test_the_two_newest_runs_on_record_are_compared(tmp_path: Path, kernel: None) -> None:  # noqa: ARG001
    """Without making any: the project's sources are not there."""
    copy_tasks(tmp_path)
    write_params(raw_params("binary", small.DAYS), tmp_path)
    p = small.settings(**{"train.seeds": 1, "evaluate.baselines": ["constant"]})
    small.write(tmp_path, small.made_rows(), p)
    uri = place_tables(tmp_path / ".evergreen")
    registry = open_registry(params.load(tmp_path / "params.yaml").registry, uri=uri)
    for number in range(3):
        small.tuned(tmp_path, p, params={"max_depth": number + 1})
        train.train(p, tmp_path)
        evaluate.evaluate(p, tmp_path)
        files = tmp_path / "recorded" / str(number)
        shutil.copytree(tmp_path / "reports", files / "reports")
        fitted = model.Model.load(tmp_path / "models" / "model.ubj")
        features = [{"name": column.name, "kind": column.kind} for column in fitted.spec.features]
        example = small.made_rows().table.slice(0, 2)
        bundle = Bundle(tmp_path / "models" / "model.ubj", tmp_path / "models" / "twin.ubj", features, example)
        empty: dict[str, Any] = {"params": {}, "metrics": {}, "counts": {}, "datasets": [], "trials": []}
        registry.runs.log(
            f"record {number}", name=f"run {number}", note="", tags={}, files=files, bundle=bundle, **empty
        )
    notebook = execute(ROOT / "notebooks" / "02-compare-runs.ipynb", tmp_path)
    shown = read_output(notebook, "stdout")
    assert re.search(r"^orders: run 1 \w{4} was held to [\d,]+ rows, run 2 \w{4} to", shown, re.MULTILINE)
    assert re.search(r"^(?!0 )[\d,]+ rows that both predicted", shown, re.MULTILINE)
    assert pictures(notebook) == 2


@each_notebook
def test_a_notebook_names_no_table_and_no_column_of_the_default_case(path: Path) -> None:
    p = params.load(ROOT / "params.yaml")
    names = {*p.sources, *p.spine.columns, *(name for table in p.contract.values() for name in table.columns)}
    words = {word for cell in code(path) for word in re.findall(r"[A-Za-z_]\w*", cell.source)}
    assert words & (names - {"year", "month", "day", "hour", "minute", "name"}) == set()


def copy_tasks(folder: Path) -> None:
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))


def execute(path: Path, folder: Path) -> Any:
    """The notebook as it is after a run in a project's folder."""
    (folder / "notebooks").mkdir()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder / "notebooks")}}).execute()
    return notebook


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def read_output(notebook: Any, stream: str) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == stream)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
