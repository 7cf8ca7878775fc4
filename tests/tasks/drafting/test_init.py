"""`evergreen init` on tables that it has never seen: what it writes runs, and nothing of a person's is lost."""

import math
import shutil
import subprocess
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from tasks import params
from tasks.drafting import init
from tasks.params import yamltext
from tests.conftest import Made

ROOT = Path(__file__).parents[3]
DAYS = 400
BEGIN = date(2021, 3, 1)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A clone of the project's two files, committed, that is the working folder."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))
    monkeypatch.setenv("EVERGREEN_PII_KEY", "a key for the tests")
    folder = tmp_path / "checkout"
    (folder / "tasks").mkdir(parents=True)
    shutil.copy2(ROOT / "params.yaml", folder)
    shutil.copy2(ROOT / "tasks" / "features.sql", folder / "tasks")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "as it comes")
    monkeypatch.chdir(folder)
    return Made(folder, {}, monkeypatch)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def read_draft(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yamltext.read(folder / "params.yaml")[0]
    return content


def read_features(folder: Path) -> Any:
    """All feature rows, in the order of time."""
    files = str(folder / "data" / "features" / "*.parquet")
    with duckdb.connect() as connection:
        return connection.execute("SELECT * FROM read_parquet($1) ORDER BY _event_time", [files]).df()


def write_weather(path: Path, *, days: int = DAYS, line: Callable[[date, list[float], str], str] | None = None) -> Path:
    """A day a row: a temperature that follows the season, some wind, and whether it rained, more likely after rain."""
    rng, lines, wet = np.random.default_rng(0), list[str](), False
    for number in range(days):
        day = BEGIN + timedelta(days=number)
        wet = bool(rng.random() < (0.7 if wet else 0.2))
        values = [round(10 - 9 * math.cos(number / 58) + rng.normal(), 1), round(float(rng.gamma(2, 2)), 1)]
        sky = "rain" if wet else "sun"
        lines.append(line(day, values, sky) if line else f"{day},{values[0]},{values[1]},{sky}")
    path.write_text("day,temperature,wind,sky\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_draft_of_a_daily_series_makes_features_that_know_only_the_past(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_weather(tmp_path / "my weather.csv")), label="temperature")
    checkout.run("ingest", "clean", "features")  # the last raises an error where a feature leaks
    features = read_features(checkout.folder)
    assert len(features) == DAYS
    last, before = features.iloc[-1], features.iloc[-2]
    assert last.temperature_1 == pytest.approx(before._label, abs=1e-5)
    assert last.temperature_7d_before == pytest.approx(features.iloc[-8]._label, abs=1e-5)
    assert "wind" not in features
    assert features.tail(300)[["wind_1", "temperature_mean_7d"]].notna().all(axis=None)


def test_the_draft_keeps_what_it_does_not_decide(checkout: Made, tmp_path: Path) -> None:
    before = read_draft(checkout.folder)
    init.main(str(write_weather(tmp_path / "weather.csv")), label="sky")
    after = read_draft(checkout.folder)
    assert {name: after[name] for name in ("tune", "train", "drift", "stage", "paths")} == {
        name: before[name] for name in ("tune", "train", "drift", "stage", "paths")
    }
    assert after.keys() == before.keys()
    assert after["registry"]["model"] == "weather"
    assert after["label"] == {"task": "binary", "expression": "sky = 'rain'", "deadline": "1d"}
    assert "# the newest stretch of mature rows; only the gate sees it" in Path("params.yaml").read_text()


@pytest.mark.usefixtures("checkout")
def test_a_draft_of_a_draft_is_the_same_draft(tmp_path: Path) -> None:
    table = str(write_weather(tmp_path / "weather.csv"))
    init.main(table, label="temperature")
    first = [path.read_bytes() for path in (Path("params.yaml"), Path("tasks/features.sql"))]
    init.main(table, label="temperature")  # not committed, but nobody has changed it
    assert [path.read_bytes() for path in (Path("params.yaml"), Path("tasks/features.sql"))] == first


def test_work_that_git_does_not_hold_is_not_replaced(checkout: Made, tmp_path: Path) -> None:
    table = str(write_weather(tmp_path / "weather.csv"))
    init.main(table, label="sky")
    edited = Path("tasks/features.sql").read_text() + "-- mine\n"
    Path("tasks/features.sql").write_text(edited)
    with pytest.raises(ValueError, match=r"tasks/features\.sql hold work that git does not"):
        init.main(table, label="temperature")
    assert Path("tasks/features.sql").read_text() == edited
    assert read_draft(checkout.folder)["label"]["task"] == "binary"
    init.main(table, label="temperature", force=True)
    assert Path("tasks/features.sql.before").read_text() == edited
    assert read_draft(checkout.folder)["label"]["task"] == "regression"


@pytest.mark.usefixtures("checkout")
def test_what_cannot_be_told_is_asked_with_the_candidates(tmp_path: Path) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"--label must say what to predict.*temperature, wind, sky"):
        init.main(str(write_weather(tmp_path / "weather.csv")))
    two = tmp_path / "two.csv"
    two.write_text("sent,came,cost\n2021-01-01,2021-01-03,4\n2021-01-02,2021-01-05,5\n")
    with pytest.raises(ValueError, match=r"--time must say when a row happened.*sent, came"):
        init.main(str(two), label="cost")
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.usefixtures("checkout")
def test_the_written_file_is_what_params_reads(tmp_path: Path) -> None:
    init.main(str(write_weather(tmp_path / "weather.csv")), label="wind > 5", lead=timedelta(days=2))
    p = params.load()
    assert p.features.lead == timedelta(days=2)
    assert p.label.task == "binary"
    assert p.contract["weather"].columns["sky"].outcome
