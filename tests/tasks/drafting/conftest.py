"""A checkout to draft in, as the working folder, with a home of its own."""

from pathlib import Path

import pytest

from tests.conftest import Made
from tests.tasks.drafting import tables


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))
    monkeypatch.setenv("EVERGREEN_PII_KEY", "a key for the tests")
    folder = tables.make_checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    return Made(folder, {}, monkeypatch)
