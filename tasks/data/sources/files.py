"""files: paths and file://path, with * for many files.

`*` is the only mark of a pattern, and a name that exists is never a pattern. Files are in the order of their names,
numbers in them as numbers: part2 comes before part10. A relative path starts at the working directory or, where a run's
workspace lacks it, at the checkout that the workspace was made of.
"""

import glob
import os
import re
from pathlib import Path

from tasks.data.sources.scheme import DeliveryError
from tasks.params import Source


class LocalFiles:
    """Files of this machine, read where they lie."""

    def fetch(self, address: str, _source: Source) -> list[Path]:
        return find_files(address.removeprefix("file://"))


def find_files(path: str) -> list[Path]:
    """The files of a path or a pattern. Raises DeliveryError where there are none.

    A workspace holds what git tracks, at the run's commit. What it lacks is looked for in its checkout.
    """
    places = [Path(), *map(Path, filter(None, [os.environ.get("EVERGREEN_CHECKOUT")]))]
    files = {name: place / name for place in reversed(places) for name in _match(path, place)}
    if not files:
        raise DeliveryError(
            f"{path} does not exist (seen from {' and from '.join(str(place.resolve()) for place in places)})"
        )
    return [files[name] for name in sorted(files, key=order_naturally)]  # by the name, whatever its place


def order_naturally(name: str) -> list[list[tuple[str, int, str]]]:
    """Sort names by this: folder by folder, digits by their number. 07 and 7 differ, too."""
    pieces = [re.findall(r"(\D*)(\d*)", part) for part in Path(name).parts]
    return [[(text, int(digits or 0), digits) for text, digits in piece] for piece in pieces]


def _match(path: str, place: Path) -> list[str]:
    """The path itself where it exists; else what fits its `*`. The name of a folder that exists is no pattern."""
    if (place / path).exists():
        return [path]
    if "*" not in path:
        return []
    pieces, base = [], place
    for piece in Path(path).parts:
        base /= piece
        pieces.append(glob.escape(piece) if base.exists() else re.sub(r"[\[?]", r"[\g<0>]", piece))
    return glob.glob(str(Path(*pieces)), root_dir=place)
