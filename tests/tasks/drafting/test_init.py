"""`evergreen init` on tables that it has never seen: what it writes runs, and nothing of a person's is lost."""

import csv
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import params
from tasks.drafting import init
from tests.conftest import Made
from tests.tasks.drafting.tables import (
    DAYS,
    read_draft,
    read_features,
    write_lines,
    write_messy,
    write_orders,
    write_prices,
    write_weather,
)


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
    for name in ("train", "drift", "stage", "paths"):
        assert after[name] == before[name]
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
    with pytest.raises(ValueError, match=r"(?s)--label must say what to predict.*temperature, wind, sky"):
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


def test_a_messy_file_gives_the_rows_of_the_clean_one(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_messy(tmp_path / "messy.csv")), label="Wetter")
    draft = read_draft(checkout.folder)
    source, columns = draft["sources"]["messy"], draft["contract"]["messy"]["columns"]
    assert source["nulls"] == ["-200"]
    assert (source["decimal"], source["encoding"]) == (",", "latin-1")
    assert columns["Tag"] == {"type": "DATE", "format": "%d.%m.%Y", "required": True}
    assert columns["Wärme"] == {"type": "DOUBLE", "outcome": True}
    checkout.run("ingest", "clean", "features")
    messy = read_features(checkout.folder)
    init.main(str(write_weather(tmp_path / "weather.csv")), label="sky")
    checkout.run("ingest", "clean", "features")
    clean = read_features(checkout.folder)
    assert (messy._event_time == clean._event_time).all()
    assert (messy["Wind_1"].dropna() == clean["wind_1"].dropna()).all()
    assert messy["Wärme_1"].isna().sum() == 11
    assert (messy["Wärme_1"].dropna() == clean["temperature_1"][messy["Wärme_1"].notna()]).all()


def test_json_lines_give_the_draft_of_their_csv(checkout: Made, tmp_path: Path) -> None:
    path = write_weather(tmp_path / "weather.csv")
    init.main(str(path), label="sky")
    contract = read_draft(checkout.folder)["contract"]
    with path.open(newline="") as lines, (tmp_path / "weather.jsonl").open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in csv.DictReader(lines))
    init.main(str(tmp_path / "weather.jsonl"), label="sky")
    assert read_draft(checkout.folder)["contract"] == contract


def test_events_are_predicted_by_what_stands_in_their_row(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_orders(tmp_path / "orders.csv")), label="returned", delay=timedelta(days=3))
    draft = read_draft(checkout.folder)
    columns = draft["contract"]["orders"]["columns"]
    assert draft["contract"]["orders"]["key"] == ["order_id"]
    assert columns["ordered"]["format"] == "%m/%d/%Y %I:%M %p"
    assert columns["contact"] == {"type": "VARCHAR", "pii": True}
    assert columns["refund"]["outcome"], "it tells the label"
    assert draft["label"]["deadline"] == "3d"
    assert draft["evaluate"]["slices"] == ["store"]
    checkout.run("ingest", "clean", "features")
    features = read_features(checkout.folder)
    assert {"store", "amount", "store_outcome_7d", "all_rows_1d"} <= set(features.columns)
    assert {"contact", "order_id", "refund", "returned"}.isdisjoint(features.columns)
    row = features.iloc[-1]
    known = features[features._known_at.between(row._event_time - timedelta(days=7), row._event_time)]
    assert row.store_outcome_7d == pytest.approx(known._label[known.store == row.store].mean(), abs=1e-6)


def test_a_series_may_be_predicted_by_its_change(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_prices(tmp_path / "prices.csv")), change=True)
    checkout.run("ingest", "clean", "features")
    features = read_features(checkout.folder)
    tin = features[features.metal == "tin"].reset_index(drop=True)
    assert tin._label[1:-1].tolist() == pytest.approx((tin.price_1.shift(-1) - tin.price_1)[1:-1].tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="--change needs a series"):
        init.main(str(write_weather(tmp_path / "weather.csv")), label="sky", change=True)


def test_series_in_one_table_have_lags_of_their_own(checkout: Made, tmp_path: Path) -> None:
    init.main(str(write_prices(tmp_path / "prices.csv")))
    draft = read_draft(checkout.folder)
    assert draft["label"]["expression"] == "price"
    assert draft["contract"]["prices"]["key"] == ["event_time", "metal"]
    assert draft["sources"]["prices"]["known_at"] == "event_time + INTERVAL 1 MONTH"
    checkout.run("ingest", "clean", "features")
    features = read_features(checkout.folder)
    tin = features[features.metal == "tin"].reset_index(drop=True)
    assert tin.price_1[1:].tolist() == pytest.approx(tin._label[:-1].tolist(), abs=1e-4)
    assert tin.price_12m_before[12:].tolist() == pytest.approx(tin._label[:-12].tolist(), abs=1e-4)


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"entity": ["town"]}, "the table has no column town; it has day, temperature, wind, sky"),
        ({"time": "wind"}, "--time wind holds no times that can be read"),
        ({"known_at": "wind"}, "gives a DOUBLE, but a DATE or a TIMESTAMP is needed"),
        ({"label": "rain"}, "there is no column `rain` here"),
        ({"label": "day"}, "--label day is a time"),
        ({"time": "day", "task": "binary"}, "--task binary needs a condition"),
    ],
)
def test_a_flag_that_does_not_fit_the_table_is_refused(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        init.main(str(write_weather(tmp_path / "weather.csv")), **({"label": "temperature"} | flags))


def test_numbers_in_dress_are_told_of(checkout: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        f"{number};2022-01-{1 + number % 28:02} 10:{number % 60:02};1,{number:03}.50 $;{number % 3}"
        for number in range(300)
    ]
    init.main(str(write_lines(tmp_path / "sales.csv", "id;sold;total;late", lines)), label="late > 1")
    assert read_draft(checkout.folder)["contract"]["sales"]["columns"]["total"] == {"type": "VARCHAR"}
    assert "sources.derive" in capsys.readouterr().out


def test_rows_without_a_time_go_to_quarantine_and_stop_nothing(checkout: Made, tmp_path: Path) -> None:
    table = write_weather(tmp_path / "weather.csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, *["n/a,1.0,2.0,sun"] * 20]) + "\n")
    init.main(str(table), label="temperature")
    assert read_draft(checkout.folder)["clean"]["max_bad_share"] == 0.1
    checkout.run("ingest", "clean", "features")
    assert len(read_features(checkout.folder)) == DAYS
