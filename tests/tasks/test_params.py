"""params.yaml is read strictly: what is wrong in it is named, with the way out, before any work begins."""

import copy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import params
from tests.conftest import raw_params

ROOT = Path(__file__).parents[2]


def changed(name: str, value: Any) -> dict[str, Any]:
    """The made world's params with one value set, or with the key gone when the value is ..."""
    raw = copy.deepcopy(raw_params("binary", 60))
    *sections, key = name.split(".")
    inner = raw
    for section in sections:
        inner = inner[section]
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    return raw


def refusal(name: str, value: Any) -> str:
    with pytest.raises(ValueError, match=r"params\.yaml: ") as caught:
        params.validate(changed(name, value))
    return str(caught.value)


def test_the_projects_own_file_is_valid() -> None:
    assert params.load(ROOT / "params.yaml").spine.table == "flights"


def test_params_survive_the_way_through_their_own_text() -> None:
    p = params.load(ROOT / "params.yaml")
    assert params.validate(yaml.safe_load(yaml.safe_dump(p.model_dump(mode="json")))) == p


def test_params_cannot_be_changed_after_reading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.validate(raw_params("binary", 60)).clean.max_bad_share = 1


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cleen", "clean"),
        ("features.leed", "lead"),
        ("tune.trails", "trials"),
        ("sources.orders.adress", "address"),
        ("contract.orders.keys", "key"),
        ("contract.orders.columns.amount.tpye", "type"),
        ("tune.space.eta.hihg", "high"),
        ("evaluate.costs.false_negativ", "false_negative"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(name: str, near: str) -> None:
    assert f"`{name}` is no known key. Did you mean `{near}`?" in refusal(name, 1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("contract.orders.columns.STORE", {"type": "VARCHAR"}, "must not name both 'store' and 'STORE'"),
        ("sources.orders.derive", {"Store": "1"}, "must not name both 'store' and 'Store'"),
        ("contract.orders.columns._row", {"type": "VARCHAR"}, r"must not be called ['_row']"),
        ("contract.orders.columns.Reason", {"type": "VARCHAR"}, r"must not be called ['Reason']"),
        ("contract.orders.columns.a\tb", {"type": "VARCHAR"}, r"names that can be read, but got 'a\tb'"),
        ("contract.Orders", {"columns": {"x": {"type": "VARCHAR"}}}, "must name the same tables"),
        ("contract.orders.version", "amuont", "must name one of its columns, but got 'amuont'. Did you mean `amount`?"),
        ("contract.orders.version", "delay", "'delay' is an outcome"),
        ("sources.orders.encoding", "latin1x", "an encoding is a name such as utf-8, cp1252 or latin-1"),
        ("sources.orders.decimal", ";", "sources.orders.decimal"),
        ("sources.orders.address", "https://ada:pass@host/t.csv", "must hold no user and no password"),
        ("sources.orders.address", "https:///t.csv", "needs a host"),
        ("sources.orders.fallback", "last", "fallback: last and max_age go together"),
        ("sources.orders.max_age", "1d", "fallback: last and max_age go together"),
        ("sources.orders.sha256", "ABC", "a sha256 is 64 digits of 0-9 and a-f"),
        ("sources.orders.headers", {"X-Key": "TOKEN"}, "headers are sent to http:// and https:// only"),
        ("sources.orders.headers", {"X-Key": "Bearer abc"}, "by the name of an environment variable that holds it"),
        ("sources.orders.timeout", "0s", "sources.orders.timeout"),
        ("sources.orders.address", "postgresql://ada:pass@host/db", "must hold no password"),
        ("sources.orders.address", "postgresql://host", "is postgresql://user@host:port/database"),
        ("sources.orders.address", "postgresql://host/db", "query goes with an address of postgresql://"),
        ("sources.orders.query", "orders", "query goes with an address of postgresql://"),
        ("sources.orders.watermark", "placed", "watermark and overlap go with an address of postgresql://"),
        ("sources.orders.address", "kafka://host", "is kafka://broker:port,broker:port/topic"),
        ("sources.orders.client", {"sasl.username": "me"}, "client goes with an address of kafka://"),
        ("sources.orders.password", "SECRET", "password goes with an address of postgresql:// or kafka://"),
        ("sources.orders.address", "s3://bucket", "needs a bucket and a key"),
    ],
)
def test_names_and_settings_of_a_table_are_checked_where_they_enter(name: str, value: Any, said: str) -> None:
    assert said in refusal(name, value)


def test_a_key_like_no_other_is_refused_without_a_guess() -> None:
    assert refusal("zzz", 1).endswith("`zzz` is no known key.")


def test_a_missing_key_is_named() -> None:
    assert "`features.lookback` is missing." in refusal("features.lookback", ...)


def test_all_that_is_wrong_is_said_at_once() -> None:
    raw = changed("tune.trials", 0)
    raw["clean"]["max_bad_shar"] = 1
    with pytest.raises(ValueError) as caught:
        params.validate(raw)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tune.trials", "many", "`tune.trials`: Input should be a valid integer.*, but got 'many'"),
        ("tune.trials", 0, "greater than or equal to 1, but got 0"),
        ("clean.max_bad_share", 2, "less than or equal to 1, but got 2"),
        ("ingest.period", "year", "'day', 'week' or 'month', but got 'year'"),
        (
            "features.lead",
            "2 parsecs",
            "a length of time is a number and one of s/m/h/d/w, such as 28d, but got '2 parsecs'$",
        ),
        ("features.lead", 7200, "such as 28d, but got 7200$"),
        ("split.holdout", "0d", "greater than 0s, but got '0d'"),
        ("clock.as_of", 2013, "a moment is a date such as 2013-09-01.*, but got 2013$"),
        ("clock.as_of", "soon", "`clock.as_of`: .*datetime.*, but got 'soon'"),
        ("stage.limits", {"ingset": "5m"}, "no stage called ingset. Did you mean `ingest`?"),
        ("tune.space.eta", {"low": 2, "high": 1}, "low <= high"),
        ("tune.space.eta", {"low": 0, "high": 1, "log": True}, "low > 0, but got low=0"),
        ("contract.orders.columns.store.min", 1, "min and max need a number's type, but got VARCHAR"),
        ("contract.orders.columns.email.type", "INTEGER", "needs type VARCHAR"),
        ("contract.orders.columns.store.allowed", [], "at least 1 item"),
        (
            "contract.orders.columns.email.references",
            "customers",
            "a reference is <table>.<column>, but got 'customers'",
        ),
        ("contract.orders.columns.email.references", "custmers.email", "another table, but got custmers.*`customers`"),
        ("contract.orders.columns.email.references", "customers.emial", "customers has no column emial.*`email`"),
        ("contract.orders.columns.email.references", "customers.age", "must have the same type, and pii both"),
        ("contract.orders.key", ["nummer"], r"key must name its columns, but \['nummer'\] are none.*`number`"),
        ("contract.orders.columns.reason", {"type": "VARCHAR"}, r"must not be called \['reason'\]"),
        ("contract.customers.columns.known_at", {"type": "TIMESTAMP"}, r"must not be called \['known_at'\]"),
        ("contract.customers.columns.age.outcome", True, r"outcomes \['age'\], so sources.customers.event_time"),
        ("contract.orders", ..., r"only one has \['orders'\]"),
        ("sources.spine", {"address": "x.csv"}, r"only one has \['spine'\]"),
        ("spine.table", "order", r"must be one of \['customers', 'orders', 'traffic'\], but got 'order'"),
        ("spine.table", "customers", "must have event times: give sources.customers.event_time"),
        ("spine.columns", ["stoer"], r"\['stoer'\] are not. Did you mean `store`"),
        ("spine.columns", ["delay"], r"known when a prediction is asked, but \['delay'\] are outcomes"),
        ("gate.metric", "rmse", "label.task binary does not go with gate.metric rmse"),
        ("gate.min_gain", float("nan"), "a finite number, but got nan"),
        ("contract.orders.columns.amount.max", float("inf"), "a finite number, but got inf"),
        ("contract.orders.columns.amount.max", -5, "min must not be above max, but got min 0 and max -5"),
        ("label.deadline", "99999999999d", "at most 999999999 days, but got '99999999999d'"),
        ("tune.seed", -1, "greater than or equal to 0, but got -1"),
        ("registry.model", "a/b", "a name begins with a letter or digit and holds no / and no :, but got 'a/b'"),
        ("registry.experiment", "", "a name begins with .*, but got ''"),
        ("stage.memory", "lots", "an amount of memory is such as 4GB or 500MB, but got 'lots'"),
        ("paths.raw", "../raw", "a folder inside the checkout, such as data/raw, but got ../raw"),
        ("paths.raw", "/tmp/raw", "a folder inside the checkout, such as data/raw, but got /tmp/raw"),
        ("paths.raw", "data/clean/raw", "raw and clean must be folders apart, but got data/clean/raw and data/clean"),
    ],
)
def test_a_value_that_will_not_do_is_refused_by_name_and_rule(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        params.validate(changed(name, value))


@pytest.mark.parametrize("name", ["spine", "2024", "a b", "../up", "_own"])
def test_a_table_has_a_plain_name_that_no_stage_uses(name: str) -> None:
    raw = raw_params("binary", 60)
    raw["sources"][name], raw["contract"][name] = {"address": "x.csv"}, {"columns": {"a": {"type": "VARCHAR"}}}
    with pytest.raises(ValueError, match="a table's name is a letter"):
        params.validate(raw)


def test_a_file_that_is_missing_or_no_yaml_or_no_mapping_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ValueError, match=r"params\.yaml does not exist .*run this in the project's folder"):
        params.load(path)
    path.write_text("clock: {as_of: [")
    with pytest.raises(ValueError, match=r"line 1, column .* is not YAML. Check the indentation"):
        params.load(path)
    path.write_text("")
    with pytest.raises(ValueError, match="`the file`: Input should be a valid dictionary"):
        params.load(path)


@given(st.timedeltas(timedelta(0), timedelta(days=10_000)))
def test_a_length_of_time_survives_the_way_through_its_text(length: timedelta) -> None:
    assert params.parse_duration(params.spell(length)) == length


@pytest.mark.parametrize(
    ("text", "length"),
    [("90s", timedelta(seconds=90)), ("1.5h", timedelta(minutes=90)), (" 4w ", timedelta(days=28))],
)
def test_a_length_of_time_is_a_number_and_a_unit(text: str, length: timedelta) -> None:
    assert params.parse_duration(text) == length


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-02-01", datetime(2024, 2, 1)),
        ("2024-02-01T06:00:00Z", datetime(2024, 2, 1, 6)),
        ("2024-02-01T06:00:00+02:00", datetime(2024, 2, 1, 4)),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text: str, moment: datetime) -> None:
    as_of = params.validate(changed("clock.as_of", text)).clock.as_of
    assert as_of is not None
    assert params.to_utc(as_of) == moment


def test_the_stages_that_may_have_a_limit_are_those_of_dvc_yaml() -> None:
    assert list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]) == list(params.STAGES)


def test_the_home_is_the_environments_or_the_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    assert params.home() == tmp_path / ".evergreen"
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "elsewhere"))
    assert params.home() == tmp_path / "elsewhere"


def test_every_section_can_be_taken_apart_as_prefect_does() -> None:
    p = params.load(Path(__file__).parents[2] / "params.yaml")
    for section in dict(p).values():
        for each in section.values() if isinstance(section, dict) else [section]:
            assert set(dict(each)) == set(type(each).model_fields)  # a field called `keys` would break dict()


def test_a_binary_label_has_no_costs_but_its_own() -> None:
    raw = raw_params("binary", 60)
    del raw["evaluate"]["costs"]
    with pytest.raises(ValueError, match=r"label.task binary needs evaluate.costs"):
        params.validate(raw)
    raw = raw_params("regression", 60)
    del raw["evaluate"]["costs"]
    assert params.validate(raw).evaluate.costs is None


@pytest.mark.parametrize("name", ["model", "experiment"])
def test_a_model_has_no_name_but_its_own(name: str) -> None:
    """A default would put one table's versions among another's."""
    raw = raw_params("binary", 60)
    del raw["registry"][name]
    with pytest.raises(ValueError, match=rf"registry\.{name}"):
        params.validate(raw)
