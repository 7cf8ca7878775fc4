"""A YAML file as plain data, by the rules of YAML 1.2, which DVC reads params.yaml by; no key stands twice.

By those rules `on`, `no` and 1:30 are text and 1e-3 is a number; PyYAML's own are those of 1.1, where they are true,
false, 90 and a text. Keys and dates are always text. Beside its value each scalar keeps its spelling, for whoever knows
that a text is wanted: `model: 2024`.

libyaml reads a file ten times as fast as PyYAML's own parser. That one reads what libyaml refuses, for its messages.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PREFIX = "tag:yaml.org,2002:"
MERGE = PREFIX + "merge"
# Of YAML 1.2's core schema (section 10.3.2), and underscores in numbers, as DVC's reader takes them.
SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
    "merge": r"<<",
}
MAX_DEPTH = 100  # of brackets in brackets for libyaml: tens of thousands end the process


class _Loader(yaml.SafeLoader):
    """Plain scalars by YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (as PyYAML declares it)


class _SpellingLoader(yaml.SafeLoader):
    """Every scalar as it is spelled."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (as PyYAML declares it)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


for kind, pattern in SCALARS.items():
    _Loader.add_implicit_resolver(PREFIX + kind, re.compile(f"^(?:{pattern})$"), None)
_SpellingLoader.add_implicit_resolver(MERGE, re.compile(r"^<<$"), None)
_Loader.add_constructor(PREFIX + "int", _whole_number)


def _quicken(loader: Any) -> Any:
    """The same rules over libyaml's parser; the loader itself where PyYAML was built without it."""
    if not yaml.__with_libyaml__:
        return loader
    rules = {"yaml_implicit_resolvers": loader.yaml_implicit_resolvers, "yaml_constructors": loader.yaml_constructors}
    return type(loader.__name__, (yaml.CSafeLoader,), rules)


_QUICK = {loader: _quicken(loader) for loader in (_Loader, _SpellingLoader, yaml.SafeLoader)}


def read(path: Path) -> tuple[Any, Any]:
    """A file's values, and the same with every scalar as it is spelled.

    Raises ValueError that names the file when it is no YAML, or holds a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist (seen from {Path.cwd()}): run this in the project's folder") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8, see byte {error.start}: save it as UTF-8") from None
    try:
        return _load(text, _Loader, str(path)), _load(text, _SpellingLoader, str(path))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}," if mark else ""
        raise ValueError(f"{path}{place} is not YAML. {_way_out(error)}") from None


def _way_out(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "Its values are nested too deeply: write them flat."
    hint = "Check the indentation, the blank after each colon, and that quotes and brackets are closed"
    problem = getattr(error, "problem", None)
    return f"{hint} (the parser says: {problem})." if problem else f"{hint}."


def is_read_as_text(text: str) -> bool:
    """Whether a plain scalar of these characters is a text by YAML 1.2 and by 1.1, whoever reads it."""
    parts = [resolvers for loader in (_Loader, yaml.SafeLoader) for resolvers in loader.yaml_implicit_resolvers.items()]
    return not any(pattern.match(text) for first, pairs in parts for _, pattern in pairs if first in (None, text[:1]))


def load_plain(text: str) -> Any:
    """A file's values by YAML 1.1, as `yaml.safe_load` gives them: of a file that DVC or a program wrote."""
    loader, root = _read_nodes(text, yaml.SafeLoader)
    return None if root is None else loader.construct_document(root)


def _read_nodes(text: str, kind: Any) -> tuple[Any, Any]:
    """A loader and the root of its nodes, or None."""
    if _is_shallow(text):
        with contextlib.suppress(yaml.YAMLError):
            loader = _QUICK[kind](text)
            return loader, loader.get_single_node()
    loader = kind(text)
    return loader, loader.get_single_node()


def _is_shallow(text: str) -> bool:
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest <= MAX_DEPTH


def _load(text: str, kind: Any, name: str) -> Any:
    loader, root = _read_nodes(text, kind)
    if root is None:
        return None
    if twice := list(_keys_that_stand_twice(root, (), set())):
        raise ValueError("\n".join(f"{name}: {line}" for line in twice))
    return loader.construct_document(root)


def _keys_that_stand_twice(node: yaml.Node, path: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """A line for each, with both places. Keys are made text on the way."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield from _keys_that_stand_twice(item, (*path, str(place)), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.tag != MERGE:
            key.tag = PREFIX + "str"
        if key.value in lines:
            full = ".".join((*path, key.value))
            yield f"`{full}` stands twice, in line {lines[key.value]} and in line {line}. Remove one of them."
        lines.setdefault(key.value, line)
        yield from _keys_that_stand_twice(value, (*path, key.value), seen)
