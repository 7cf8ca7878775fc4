"""Values of params.yaml set for one run; the file keeps its comments and its order."""

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from tasks.params import Params, Section, to_utc, yamltext


def override_params(params: Path, values: Mapping[str, Any]) -> None:
    """Set keys such as `tune.trials` in params.yaml. A key that the file leaves at its default is added.

    Raises:
        ValueError: no section has the key; names the nearest.
    """
    from ruamel.yaml import YAML

    yamltext.read(params)  # raises this project's own message for a file that is no YAML
    file = YAML()
    file.preserve_quotes = True
    file.width = 1_000_000
    content = file.load(params)
    for key, value in values.items():
        _set_key(content, key, value, keys=list(dict.fromkeys([*list_keys(content), *_list_fields()])))
    with params.open("w", encoding="utf-8") as stream:
        file.dump(content, stream)


def _set_key(content: Any, key: str, value: Any, *, keys: list[str]) -> None:
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
        raise ValueError(f"`{key}` is no key of params.yaml.{f' Did you mean `{near[0]}`?' if near else ''}")
    *path, last = key.split(".")
    for part in path:
        if content.get(part) is None:
            content[part] = type(content)()
        content = content[part]
    if key == "clock.as_of":
        value = _spell_moment(value, like=content.get(last))
    if last in content:
        content[last] = _quote(value)
    else:
        content.insert(0, last, _quote(value))  # at the end it would come after the next section's comment


def list_keys(content: Any, prefix: str = "") -> Iterator[str]:
    """The keys that a file holds on all levels, such as `tune` and `tune.trials`."""
    for name, value in content.items() if isinstance(content, Mapping) else ():
        yield f"{prefix}{name}"
        yield from list_keys(value, f"{prefix}{name}.")


def _list_fields() -> Iterator[str]:
    """The keys that params.yaml may leave out: `section.field`."""
    for name, section in Params.model_fields.items():
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section):
            yield from (f"{name}.{field}" for field in section.annotation.model_fields)


def _quote(value: Any) -> Any:
    """Quote the texts that a reader would take for a number, a date, true or null, so that they stay texts."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {name: _quote(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_quote(item) for item in value]
    if type(value) is str and not yamltext.is_read_as_text(value):
        return DoubleQuotedScalarString(value)
    return value


def _spell_moment(value: Any, *, like: Any) -> Any:
    """Spell a moment as the file does, since DVC compares texts: 2013-07-01 and 2013-07-01T00:00:00 are one moment."""
    moment = _parse_moment(value)
    if moment is None:
        return value
    if moment == _parse_moment(like):
        return like
    return moment.isoformat().removesuffix("T00:00:00")


def _parse_moment(value: Any) -> datetime | None:
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        return None
    return to_utc(value)
