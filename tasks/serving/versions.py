"""versions: the model versions in the local copy, from which every process loads them.

registry_mirror.py makes the copy. So a process serves on while the registry is away, also after a restart. Each
version has a folder of its own; a pointer, a small JSON file, names the one that is champion or challenger.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks import params
from tasks.data import periods
from tasks.serving import schema
from tasks.training.model import Model

KINDS = {"number": pa.float32(), "category": pa.string()}
FILES = ("model.ubj", "features.sql", "params.yaml")
POINTER, CHALLENGER = "champion.json", "challenger.json"
COPY_AGAIN = "Remove the file: the mirror copies it anew when the registry answers."


@dataclass(frozen=True)
class Champion:
    """A version, ready to answer."""

    number: int
    p: params.Params
    sql: str
    model: Model
    card: Mapping[str, Any]  # from the registry: model, run_id, as_of, commit, tags

    @property
    def identity(self) -> tuple[int, Any]:
        """A number alone may also be that of another model, or of a registry made anew."""
        return self.number, self.card.get("run_id")

    @cached_property
    def journal_schema(self) -> pa.Schema:
        """Of the journal's rows of ready features, which have no key."""
        spec = self.model.spec
        score = pa.list_(pa.float64()) if spec.task == "multiclass" else pa.float64()
        types = {
            name: pa.type_for_alias(alias) for name, alias in schema.COLUMNS["predictions"].items() if alias != "any"
        }
        features = {f"{schema.FEATURE}{feature.name}": KINDS[feature.kind] for feature in spec.features}
        return pa.schema({**types, "score": score, **features})


@dataclass(frozen=True)
class Pointer:
    """Which version is copied."""

    number: int
    model: str | None = None
    run_id: str | None = None

    def names(self, champion: Champion | None) -> bool:
        if champion is None or champion.number != self.number:
            return False
        return self.run_id in (None, champion.card.get("run_id"))


def folder(home: Path) -> Path:
    return home / "serving"


def served_number(home: Path, pointer: str = POINTER) -> int | None:
    """The number of the version in the local copy; by the other pointer, of the challenger's."""
    return pointed.number if (pointed := read_pointer(home, pointer)) else None


def read_pointer(home: Path, pointer: str = POINTER) -> Pointer | None:
    """Raises ValueError for a pointer that names no version."""
    path = folder(home) / pointer
    try:
        fields = _read_object(path)
    except FileNotFoundError:
        return None
    number = fields.get("number")
    if type(number) is not int or number < 1:
        raise ValueError(f"`number` must be a version's in {path}, but got {number!r}. {COPY_AGAIN}")
    return Pointer(number, fields.get("model"), fields.get("run_id"))


def read_card(here: Path) -> dict[str, Any]:
    """What version.json tells of a copy. Raises ValueError where a file is not the one that was copied."""
    card = _read_object(here / "version.json")
    files = card.get("files", {})
    if not isinstance(files, dict):
        raise ValueError(
            f"`files` must be names and hashes in {here / 'version.json'}, but got {files!r}. {COPY_AGAIN}"
        )
    for name, wanted in files.items():
        if (digest := periods.hash_file(here / name)) != wanted:
            raise ValueError(f"{here / name} must have the hash {wanted}, but it has {digest}. {COPY_AGAIN}")
    return card


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, but it does not. {COPY_AGAIN}")
    return value


def load_version(home: Path, number: int) -> Champion:
    """Raises ValueError for a copy that is not whole."""
    here = folder(home) / str(number)
    model, sql, settings = (here / name for name in FILES)
    card = read_card(here)
    version = Champion(number, params.load(settings), sql.read_text(encoding="utf-8"), Model.load(model), card)
    if _read_object(here / "version.json") != card:
        raise ValueError(f"{here} was copied anew while it was read. The next look finds it whole.")
    return replace(version, card={name: value for name, value in card.items() if name != "files"})


def load_and_warm(home: Path, number: int) -> Champion:
    """A version from the local copy. The first answer of a model takes longest: nobody should wait for it."""
    champion = load_version(home, number)
    empty = pa.table({feature.name: pa.nulls(1, KINDS[feature.kind]) for feature in champion.model.spec.features})
    champion.model.predict(empty)
    return champion
