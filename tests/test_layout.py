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
PACKAGES = ("replay", "monitoring", "serving", "promotion", "training", "drafting", "data", "runtime")  # top to bottom
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "tasks").rglob("*.py")
    if path.stem != "__init__"
}
MODULES["tasks.params"] = ROOT / "tasks" / "params" / "__init__.py"  # the one package whose names are imported from it
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# A section of params.yaml belongs to the module of its name, or to this one.
OWNERS = {"spine": "features", "label": "features", "paths": "params"}


def imports(path: Path) -> set[str]:
    """The project modules that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tasks":
            modules |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return modules & MODULES.keys()


def needed(module: str) -> set[str]:
    """A module and all that it imports, and what those import."""
    done: set[str] = set()
    todo = {module}
    while todo:
        done |= todo
        todo = {other for name in todo for other in imports(MODULES[name])} - done
    return done


def program_of(stage: str) -> str:
    """The module that a stage runs: tasks.<package>.<stage>."""
    return str(STAGES[stage]["cmd"]).removeprefix("python -m ")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_project_module_that_its_program_imports(stage: str) -> None:
    named = {
        dep.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for dep in STAGES[stage]["deps"]
        if dep.endswith(".py")
    }
    wanted = {program_of(stage)} | needed(program_of(stage))
    assert wanted - named == set(), "dvc.yaml would leave stale output when one of these is edited"
    assert named <= MODULES.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_run_by_the_module_of_its_name(stage: str) -> None:
    assert program_of(stage) in MODULES
    assert program_of(stage).rpartition(".")[2] == stage


def test_every_stage_has_a_time_limit() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert params["stage"]["limits"].keys() == STAGES.keys()


def test_every_section_of_params_belongs_to_a_module_or_a_package() -> None:
    names = {part for module in MODULES for part in module.split(".")}
    assert {OWNERS.get(section, section) for section in Params.model_fields} <= names


def test_every_package_is_a_layer_and_every_layer_is_there() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    packages = [layer.removeprefix("tasks.") for layer in layers if layer.startswith("tasks.")]
    assert tuple(name for name in packages if f"tasks.{name}" not in MODULES) == PACKAGES
    assert {module.split(".")[1] for module in MODULES} == set(packages)


def test_the_readme_shows_the_tree_as_it_is() -> None:
    shown = set(re.findall(r"^ {2}(\w+/|\w+\.(?:py|sql)) ", (ROOT / "README.md").read_text(), re.MULTILINE))
    entries = list((ROOT / "tasks").iterdir())
    files = {path.name for path in entries if path.is_file() and path.suffix in (".py", ".sql")}
    folders = {f"{path.name}/" for path in entries if path.is_dir() and path.name != "__pycache__"}
    assert shown == (files | folders) - {"__init__.py"}


@pytest.mark.parametrize("package", ["flows", "tasks/params", *(f"tasks/{package}" for package in PACKAGES)])
def test_the_page_of_a_package_lists_its_files(package: str) -> None:
    page = (ROOT / package / "README.md").read_text()
    listed = re.findall(r"^((?:\w+/)?\w+\.py) +\S", page, re.MULTILINE)
    files = {str(path.relative_to(ROOT / package)) for path in (ROOT / package).rglob("*.py")}
    whole = {name.partition("/")[0] for name in listed if "/" in name}  # folders of which each file is listed
    wanted = [name for name in files if not name.endswith("__init__.py")]
    assert sorted(listed) == sorted(name for name in wanted if "/" not in name or name.partition("/")[0] in whole)


def test_make_help_lists_every_target() -> None:
    output = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert [name for name in phony[1].split() if name not in ("help", "key") and f"make {name} " not in output] == []


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
