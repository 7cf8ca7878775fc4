"""What the README, dvc.yaml and the import contract say of the tree is what the tree is."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.params import Params

ROOT = Path(__file__).parents[1]
MODULES = {f"tasks.{path.stem}": path for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__"}
MODULES |= {f"tasks.{path.parent.name}": path for path in (ROOT / "tasks").glob("*/__init__.py")}
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# A section of params.yaml belongs to the module of its name, or to this one.
OWNERS = {"spine": "features", "label": "features", "paths": "params"}


def imports(path: Path) -> set[str]:
    """The project modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tasks":
            found |= {f"tasks.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tasks."):
            found.add(node.module)
    return found & MODULES.keys()


def needed(module: str) -> set[str]:
    """A module and all that it imports, and what those import."""
    done: set[str] = set()
    todo = {module}
    while todo:
        done |= todo
        todo = {each for name in todo for each in imports(MODULES[name])} - done
    return done


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_project_module_that_its_program_imports(stage: str) -> None:
    named = {f"tasks.{Path(dep).stem}" for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    wanted = {f"tasks.{stage}"} | needed(f"tasks.{stage}")
    assert wanted - named == set(), "dvc.yaml would leave stale output when one of these is edited"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_run_by_the_module_of_its_name(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m tasks.{stage}"
    assert f"tasks.{stage}" in MODULES


def test_every_stage_has_a_time_limit() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert params["stage"]["limits"].keys() == STAGES.keys()


def test_every_section_of_params_belongs_to_a_module() -> None:
    assert {f"tasks.{OWNERS.get(section, section)}" for section in Params.model_fields} <= MODULES.keys()


def test_every_module_is_named_in_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = " | ".join(next(each["layers"] for each in contracts if each["type"] == "layers"))
    assert set(re.findall(r"tasks\.\w+", layers)) == MODULES.keys()


def test_the_readme_shows_the_tree_as_it_is() -> None:
    shown = set(re.findall(r"^ {2}(\w+\.(?:py|sql)) ", (ROOT / "README.md").read_text(), re.MULTILINE))
    real = {path.name for folder in ("flows", "tasks") for path in (ROOT / folder).iterdir() if path.is_file()}
    assert shown == {name for name in real if name != "__init__.py"}


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named <= targets
    assert {"demo", "test"} <= named


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_help_lists_every_target() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert [name for name in phony[1].split() if name not in ("help", "key") and f"make {name} " not in said] == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_the_lock_is_pinned_by_hash_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    pins = re.findall(r"^[a-z0-9]\S*==\S+", text, re.MULTILINE | re.IGNORECASE)
    assert len(pins) > 200
    assert all(re.search(rf"^{re.escape(pin)}.*\\\n +--hash=", text, re.MULTILINE) for pin in pins)


def test_the_top_level_holds_what_the_design_names() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    folders = {line.split("/")[0] for line in listed.splitlines() if "/" in line}
    assert folders <= {"flows", "tasks", "infra", "tests", "notebooks", ".dvc", ".ci", ".github"}


def test_dvc_compares_runs_by_a_few_numbers() -> None:
    """Each key of a metrics file is a column of `dvc exp show`; what stages report besides are outputs."""
    files = [name for stage in STAGES.values() for name in stage.get("metrics", ())]
    assert files == ["${paths.reports}/score.json", "${paths.reports}/headline.json"]
