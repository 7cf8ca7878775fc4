"""The offset that `evergreen init` drafts: the label's own past value that is nearest to it, by the data."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.drafting import init
from tests.conftest import Made
from tests.tasks.drafting.tables import read_draft, read_features, write_lines, write_prices, write_weather

HOURS = 24 * 60
NOISE = np.random.default_rng(3).normal(size=HOURS)
DAYLIGHT = np.sin(np.arange(HOURS) * 2 * np.pi / 24)


def draft_offset(checkout: Made, path: Path, values: NDArray[np.float64]) -> str | None:
    """What init drafts for an hourly series."""
    moments = (datetime(2021, 1, 1) + timedelta(hours=hour) for hour in range(len(values)))
    lines = (f"{moment:%Y-%m-%d %H:%M},{value:.3f}" for moment, value in zip(moments, values, strict=True))
    init.main(str(write_lines(path / "hours.csv", "hour,load", lines)))
    offset: str | None = read_draft(checkout.folder)["train"]["offset"]
    return offset


@pytest.mark.parametrize(
    ("values", "offset"),
    [
        (np.cumsum(NOISE), "load_1"),
        (np.linspace(5, 20, HOURS) * DAYLIGHT + NOISE / 10, "load_1d_before"),
        (NOISE, None),
        (DAYLIGHT + NOISE, None),
    ],
    ids=["walk", "season", "noise", "a season that noise hides"],
)
def test_the_value_that_leaves_least_is_the_offset_and_none_where_much_is_left(
    values: NDArray[np.float64], offset: str | None, checkout: Made, tmp_path: Path
) -> None:
    assert draft_offset(checkout, tmp_path, values) == offset


def test_the_holdout_is_not_looked_at(checkout: Made, tmp_path: Path) -> None:
    values = NOISE.copy()
    values[-HOURS // 6 :] = np.cumsum(values[-HOURS // 6 :]) * 10
    assert draft_offset(checkout, tmp_path, values) is None


def test_each_series_of_a_table_is_its_own_past(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_prices(tmp_path / "prices.csv")))
    assert read_draft(checkout.folder)["train"]["offset"] == "price_1"


def test_a_class_has_none(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_weather(tmp_path / "weather.csv")), label="sky")
    assert read_draft(checkout.folder)["train"]["offset"] is None


def test_the_offset_is_a_feature_that_the_draft_makes(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_weather(tmp_path / "weather.csv")), label="temperature")
    offset = read_draft(checkout.folder)["train"]["offset"]
    checkout.run("ingest", "clean", "features")
    features = read_features(checkout.folder)
    above = features._label - features[offset]
    assert above.var() < features._label.var() / 2
