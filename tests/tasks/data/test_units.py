"""A change of unit is seen; what merely drifts, swings or steps is not taken for one."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from tasks.data import units
from tests.conftest import Made

Spreads = list[tuple[str, units.Spread]]


def draw(rng: np.random.Generator, levels: list[float], widths: list[float] | None = None) -> Spreads:
    """Periods of 500 values around these levels."""
    widths = widths or [3.0] * len(levels)
    values = [rng.normal(level, width, 500) for level, width in zip(levels, widths, strict=True)]
    return [(f"2024-{i + 1:02}", spread) for i, one in enumerate(values) if (spread := units.measure_spread(one))]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("words", units.CONVERSIONS)
@pytest.mark.parametrize("is_turned", [False, True])
def test_each_conversion_is_seen_and_named_both_ways(words: str, is_turned: bool, rng: np.random.Generator) -> None:
    factor, offset = units.CONVERSIONS[words]
    old, new = rng.normal(20, 3, (6, 2000)), factor * rng.normal(20, 3, 2000) + offset
    if is_turned:
        old, new = factor * old + offset, rng.normal(20, 3, 2000)
    spreads = [(f"2024-{i + 1:02}", units.measure_spread(one)) for i, one in enumerate([*old, new])]
    change = units.find_change([(name, spread) for name, spread in spreads if spread])
    assert change is not None
    assert change.period == "2024-07"
    assert set(change.conversion) >= set("→" if "→" in words else "÷" if is_turned else "×")
    first, last = (part.strip() for part in (words.split(", or ")[0].split("→") if "→" in words else ("", "")))
    assert change.conversion.startswith(f"{last} → {first}" if is_turned else f"{first} → {last}") or "→" not in words


@pytest.mark.parametrize(
    ("levels", "widths"),
    [
        ([20, 20, 20, 20, 20, 20], None),
        ([20, 21, 22, 23, 24, 25], None),  # it grows
        ([20, 20, 20, 20, 20, 40], None),  # it doubles: no unit does that
        ([20, 20, 20, 20, 20, 32.2], None),  # its level is that of other units, its width is not
        ([20, 20, 20, 20, 20, 20], [3, 3, 3, 3, 3, 4.83]),  # the other way round
        ([0, 10, 20, 10, 0, 10, 20], None),  # seasons
        ([20, 20, 20, 32.2], [3, 3, 3, 4.83]),  # too few periods to know what is usual
    ],
)
def test_what_is_no_change_of_unit_is_none(levels: list[float], widths: list[float] | None) -> None:
    for seed in range(20):
        assert units.find_change(draw(np.random.default_rng(seed), levels, widths)) is None


def test_one_percentile_that_moves_alone_is_drift() -> None:
    usual = [("2024-0" + str(i), (-5.0, -2.0, 38.0 + i)) for i in range(1, 6)]
    assert units.find_change([*usual, ("2024-06", (-5.0, -1.0, 69.0))]) is None


def test_a_column_of_one_value_or_few_values_is_not_judged() -> None:
    assert units.measure_spread(np.array([1.0] * 49 + [np.nan] * 100)) is None
    constant = [(f"2024-{i}", (7.0, 7.0, 7.0)) for i in range(6)]
    assert units.find_change([*constant, ("2024-7", (700.0, 700.0, 700.0))]) is None


def test_clean_fails_by_name_until_the_contract_lets_the_unit_change(make_world: Callable[..., Made]) -> None:
    made = make_world(days=63, per_day=60)
    path = made.folder / "source/orders.csv"
    head, *lines = path.read_text().splitlines()
    distance = head.split(",").index("distance")
    for i, line in enumerate(lines):
        cells = line.split(",")
        if cells[1] >= "2024-02-26":  # kilometres become metres
            cells[distance] = str(float(cells[distance]) * 1000)
            lines[i] = ",".join(cells)
    path.write_text("\n".join([head, *lines, ""]))
    made.raw["contract"]["orders"]["columns"]["distance"].pop("max", None)
    weekly = {"ingest.period": "week", "clock.as_of": "2024-03-03T12:00:00"}
    with pytest.raises(
        ValueError, match=r"distance seems to have another unit since 2024-W09: .*, as by × 1,000\."
    ) as e:
        made.run("ingest", "clean", p=made.params(**weekly))
    assert "contract.orders.columns.distance.scale to free" in str(e.value)
    assert "another unit since 2024-W09" in (made.folder / "reports/quality.html").read_text()
    made.run("ingest", "clean", p=made.params(**weekly, **{"contract.orders.columns.distance.scale": "free"}))
    report = json.loads((made.folder / "reports/quality.json").read_text())
    assert report["tables"]["orders"]["units"] == {}
    made.run("ingest", "clean", p=made.params(**{**weekly, "clock.as_of": "2024-02-25T12:00:00"}))
