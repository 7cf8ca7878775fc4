"""package: package://name/path, for data inside an installed package."""

import importlib.util
from pathlib import Path

from tasks.data.sources.files import find_files
from tasks.data.sources.scheme import DeliveryError
from tasks.params import Source


class PackageFiles:
    """Data files of an installed package, which is not imported: some load everything when they are."""

    def fetch(self, address: str, _source: Source) -> list[Path]:
        name, _, inside = address.removeprefix("package://").partition("/")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise DeliveryError(f"package {name} is not installed; add it to pyproject.toml and run `make setup`")
        return find_files(str(Path(spec.submodule_search_locations[0]) / inside))
