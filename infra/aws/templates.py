"""templates: the CloudFormation templates, as text and as plain data: `!Ref Key` is {"Ref": "Key"}.

CloudFormation has no lists whose length a parameter gives. So the secrets of the sources, which params.yaml names, are
written into the text: each is a field of one secret (`Sources` of state.yaml), and a variable of each flow run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
MARK = "# sources: "


class _Loader(yaml.SafeLoader):
    """YAML with the short forms of CloudFormation's functions."""


def _construct_function(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if name == "GetAtt":
            value = str(value).split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        raise ValueError(f"!{name} takes a value or a list")
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _construct_function)


def write_template(part: str, secrets: Sequence[str] = ()) -> str:
    """The text of a stack's template: `state` or `services`.

    Args:
        secrets: the names of the variables that hold the sources' secrets.
    """
    lines = []
    for line in (HERE / f"{part}.yaml").read_text().splitlines():
        lines.append(line)
        if line.strip().startswith(MARK):
            indent = line[: line.index(MARK)]
            lines += [f'{indent}- {{Name: {name}, ValueFrom: !Sub "${{SourcesSecret}}:{name}::"}}' for name in secrets]
    return "\n".join(lines) + "\n"


def read_template(part: str, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """The template as data."""
    return dict(yaml.load(write_template(part, secrets), _Loader))
