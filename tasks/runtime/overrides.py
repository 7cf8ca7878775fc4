"""Values of params.yaml set for one run; the file keeps its comments and its order."""

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from tasks.params import Params, Section, yamltext


def override_params(params: Path, values: Mapping[str, Any]) -> None:
    """Set keys such as `tune.trials` in params.yaml. A key that nothing knows is an error that names the nearest.

    A key that the file leaves at its default is put in.
    """
    from ruamel.yaml import YAML

    yamltext.read(params)  # says in our words what is wrong with the file
    file = YAML()
    file.preserve_quotes = True
    file.width = 1_000_000
    content = file.load(params)
    for key, value in values.items():
        _set(content, key, value, known=list(dict.fromkeys([*_keys(content), *_fields()])))
    with params.open("w", encoding="utf-8") as stream:
        file.dump(content, stream)


def _set(content: Any, key: str, value: Any, *, known: list[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        raise ValueError(f"`{key}` is no key of params.yaml.{f' Did you mean `{near[0]}`?' if near else ''}")
    *path, last = key.split(".")
    for part in path:
        if content.get(part) is None:
            content[part] = type(content)()
        content = content[part]
    if key == "clock.as_of":
        value = _spelled(value, like=content.get(last))
    if last in content:
        content[last] = _quoted(value)
    else:
        content.insert(0, last, _quoted(value))  # at the end it would come after the next section's comment


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    for name, value in content.items() if isinstance(content, Mapping) else ():
        yield f"{prefix}{name}"
        yield from _keys(value, f"{prefix}{name}.")


def _fields() -> Iterator[str]:
    """The keys that params.yaml may leave out: `section.field`."""
    for name, section in Params.model_fields.items():
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section):
            yield from (f"{name}.{field}" for field in section.annotation.model_fields)


def _quoted(value: Any) -> Any:
    """Texts that a reader would take for a number, a date, true or nothing, in quotes: a text stays one."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {name: _quoted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(item) for item in value]
    if type(value) is str and not yamltext.is_read_as_text(value):
        return DoubleQuotedScalarString(value)
    return value


def _spelled(value: Any, *, like: Any) -> Any:
    """One spelling a moment: DVC compares parameters as text, and 2013-07-01 and 2013-07-01T00:00:00 are the same."""
    moment = _moment(value)
    if moment is None:
        return value
    if moment == _moment(like):
        return like
    return moment.isoformat().removesuffix("T00:00:00")


def _moment(value: Any) -> datetime | None:
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
