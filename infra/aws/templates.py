"""templates: the CloudFormation templates, read as plain data: `!Ref Key` is {"Ref": "Key"}."""

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


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


def read_template(part: str) -> dict[str, Any]:
    """The template of a stack: `state` or `services`."""
    return dict(yaml.load((HERE / f"{part}.yaml").read_text(), _Loader))
