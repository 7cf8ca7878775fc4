"""What ingest and clean leave of the made world, for tests of what comes after."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import params
from tasks.data import clean, ingest
from tests.conftest import KEY, Made, raw_params, write_sources


def write_cleaned(folder: Path, *, days: int, per_day: int) -> Path:
    write_sources(folder / "source", days=days, per_day=per_day, seed=0)
    p = params.validate(raw_params("binary", days))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EVERGREEN_PERIODS", str(folder / "periods"))
        patch.setenv("EVERGREEN_PII_KEY", KEY)
        ingest.ingest(p)
        clean.clean(p)
    return folder


def copy_cleaned(make_world: Callable[..., Made], cleaned: Path, *, days: int, per_day: int) -> Made:
    made = make_world(days=days, per_day=per_day)
    shutil.copytree(cleaned / "data", made.folder / "data")
    return made
