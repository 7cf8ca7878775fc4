"""The notebooks run from top to bottom in a fresh project, define nothing, and are stored without what they showed."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

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


@each_notebook
def test_a_notebook_runs_right_after_a_clone(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PII_KEY", "a key for the tests")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    for name in ("EVERGREEN_HOME", "EVERGREEN_PERIODS", "MPLBACKEND"):  # the last: as a person sees it, with pictures
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    assert pictures(notebook) > 0
    assert said(notebook, "stderr") == ""


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def said(notebook: Any, stream: str) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == stream)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
