"""params.yaml read and checked: an error names the key, the rule, the value and the nearest key that exists."""

from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from tasks.params import yamltext
from tasks.params.file import Params
from tasks.params.sections import Section
from tasks.params.values import spell, suggest


def load(path: Path | str = "params.yaml") -> Params:
    """Read and check the file. Raises ValueError that names file, key, rule and value, a line each."""
    raw, spelled = yamltext.read(Path(path))
    try:
        Params.model_validate(raw)
    except ValidationError as error:
        for problem in error.errors():
            _take_spelling(raw, spelled, dict(problem))
    return validate(raw, str(path))


def _take_spelling(raw: Any, spelled: Any, problem: dict[str, Any]) -> None:
    """Where a text is wanted, 2024, true or 1e3 is the text that stands there. Nothing is no text, but in a list."""
    if not problem["loc"] or problem["type"] not in ("string_type", "literal_error", "path_type"):
        return
    *path, last = problem["loc"]
    value = problem["input"]
    if not isinstance(value, bool | int | float) and not (value is None and isinstance(last, int)):
        return
    try:
        for part in path:
            raw, spelled = raw[part], spelled[part]
        text = spelled[last]
        raw[last] = text if text not in ("", "~") else None
    except (LookupError, TypeError):  # a place that is no plain path through the file
        return


def validate(raw: Any, name: str = "params.yaml") -> Params:
    """Check what a file of this name holds. Raises ValueError, a line for each problem."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise ValueError("\n".join(f"{name}: {line}" for line in lines)) from None


def _explain(problem: dict[str, Any]) -> str:
    place, kind, value = problem["loc"], problem["type"], problem["input"]
    key = ".".join(map(str, place)) or "the file"
    if kind == "extra_forbidden":
        return f"`{key}` is no known key.{_suggest_key(place)}"
    if kind == "missing":
        return f"`{key}` is missing."
    rule = problem["msg"].removeprefix("Value error, ").replace("datetime.timedelta(0)", spell(timedelta(0)))
    names_value = kind == "value_error" or isinstance(value, dict)  # this project's own messages name their values
    return f"`{key}`: {rule}" if names_value else f"`{key}`: {rule}, but got {value!r}"


def _suggest_key(place: tuple[Any, ...]) -> str:
    model: Any = Params
    for part in place[:-1]:
        fields = getattr(model, "model_fields", {})
        model = _find_section(fields[part].annotation) if part in fields else model
    return suggest(str(place[-1]), getattr(model, "model_fields", {})).removeprefix(".")


def _find_section(annotation: Any) -> Any:
    """The section's class inside dict[str, Section] or Section | None."""
    classes = [_find_section(part) for part in get_args(annotation)] or [annotation]
    return next((kind for kind in classes if isinstance(kind, type) and issubclass(kind, Section)), annotation)
