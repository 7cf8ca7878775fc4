"""bill: the software that made a run, as CycloneDX 1.6 (ECMA-424) spells it: sbom.json beside it."""

import contextlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

NAME = "sbom.json"
PINNED = re.compile(r"^([A-Za-z0-9][\w.-]*)==", re.MULTILINE)


def list_software(lock: Path) -> dict[str, Any]:
    """The bill of the software, in CycloneDX 1.6: what the lock file names and this environment has.

    Args:
        lock: requirements.lock; where there is none, all that is installed.
    """
    names = PINNED.findall(lock.read_text(encoding="utf-8")) if lock.exists() else []
    packages = {one.name: one for one in metadata.distributions() if one.name} if not names else {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):  # of another system
            packages[name] = metadata.distribution(name)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [_describe_package(name, one) for name, one in sorted(packages.items())],
    }


def _describe_package(name: str, package: metadata.Distribution) -> dict[str, Any]:
    described = {
        "type": "library",
        "name": name,
        "version": package.version,
        "purl": f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{package.version}",
    }
    facts, key = package.metadata, "License-Expression"
    return described | ({"licenses": [{"expression": facts[key]}]} if key in facts else {})
