"""The work pool that runs the deployments: its kind is a word in prefect.yaml, its job template the file of that name.

A template is Prefect's base job template: `variables`, which a deployment's job_variables fill, and the
`job_configuration` that they are put into. Every kind knows the same ones: cpu (1024 is one CPU), memory (in MiB), env.
A default that is `$NAME` is that variable of whoever deploys.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

Kind = Literal["process", "docker", "kubernetes", "ecs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HERE = Path(__file__).parent
TEXT = {"type": ["string", "null"], "default": None}
FILLED = {  # variables of every kind, which the worker fills in where nobody else does
    "command": {"title": "Command", "description": "Of the run; Prefect's own without one.", **TEXT},
    "name": {"title": "Name", "description": "Of what runs; the run's without one.", **TEXT},
    "labels": {"title": "Labels", "description": "Besides those of the run.", "type": "object", "default": {}},
}


@dataclass(frozen=True)
class Pool:
    """A work pool of prefect.yaml, as a deploy puts it on the server."""

    name: str
    kind: Kind


def read_pool(checkout: Path) -> Pool:
    """The pool that prefect.yaml sends the deployments to. Raises ValueError for a kind that is none."""
    definitions = yaml.safe_load((checkout / "prefect.yaml").read_text())["definitions"]
    kind = definitions.get("kind", "process")
    if kind not in KINDS:
        raise ValueError(f"prefect.yaml: definitions.kind is {kind!r}; it is one of {', '.join(KINDS)}")
    return Pool(str(definitions["pool"]["name"]), kind)


def read_template(kind: Kind, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The base job template of a kind, its `$NAME` defaults filled from the environment.

    Raises:
        ValueError: variables that it needs are not set; names them.
    """
    template: dict[str, Any] = yaml.safe_load((HERE / f"{kind}.yaml").read_text())
    template["variables"]["properties"] |= copy.deepcopy(FILLED)
    lacking: list[str] = []
    for variable in template["variables"]["properties"].values():
        if "default" in variable:
            variable["default"] = _fill(variable["default"], variable.get("type"), environment, lacking)
    if lacking:
        way_out = "; `evergreen cloud status` prints them" if kind == "ecs" else ""
        raise ValueError(f"a pool of the kind {kind} needs {', '.join(lacking)} in the environment{way_out}")
    return template


def _fill(default: Any, kind: Any, environment: Mapping[str, str], lacking: list[str]) -> Any:
    if isinstance(default, dict):
        return {key: _fill(value, "string", environment, lacking) for key, value in default.items()}
    if not isinstance(default, str) or not default.startswith("$"):
        return default
    name = default[1:]
    if not (value := environment.get(name)):
        lacking.append(name)
        return default
    return value.split(",") if kind == "array" else value
