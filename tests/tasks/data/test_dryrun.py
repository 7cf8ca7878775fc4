"""What needs no row to be refused is refused before a source is read; what is right passes."""

from pathlib import Path
from typing import Any

import pytest

from tasks import params
from tasks.data import dryrun
from tests.conftest import FEATURES_SQL, Made

ROOT = Path(__file__).parents[3]


def refusal(made: Made, sql: str = FEATURES_SQL, **overrides: Any) -> str:
    """Of a project whose sources are not even there."""
    (made.folder / "tasks" / "features.sql").write_text(sql)
    for path in (made.folder / "source").iterdir():
        path.unlink()
    with pytest.raises(ValueError) as caught:
        dryrun.dry_run(made.params(**overrides), made.folder)
    return str(caught.value)


def test_the_made_world_and_the_flights_pass(made: Made) -> None:
    dryrun.dry_run(made.params(), made.folder)
    dryrun.dry_run(params.load(ROOT / "params.yaml"), ROOT)


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ("SELECT row_id, amuont FROM spine", "features.sql, column 16: there is no column `amuont` here."),
        ("SELECT row_id, now() AS x FROM spine", "line 1, calls now()"),
        ("SELECT row_id FROM spine", "gives back no feature"),
        ("SELECT row_id, event_time FROM spine", "`event_time` is a TIMESTAMP, but a feature is"),
        ('SELECT row_id, amount AS "a[1]" FROM spine', "a feature's name must be printable"),
    ],
)
def test_features_that_will_not_do_are_told_at_once(made: Made, sql: str, rule: str) -> None:
    assert rule in refusal(made, sql)


@pytest.mark.parametrize(
    ("setting", "expression", "rule"),
    [
        ("label.expression", "dealy > 3", "there is no column `dealy` here. Did you mean `delay`?"),
        ("label.expression", "placed", "gives a TIMESTAMP, but label.task binary needs"),
        ("sources.orders.event_time", "plcaed", "there is no column `plcaed` here. Did you mean `placed`?"),
        ("sources.orders.event_time", "amount", "must be a TIMESTAMP"),
        ("sources.orders.known_at", "placed +", "no SQL that can be read"),
        ("sources.orders.derive", {"far": "dist > 2"}, "sources.orders.derive.far `dist > 2`, column 1: there is no"),
    ],
)
def test_expressions_that_will_not_do_are_told_at_once(made: Made, setting: str, expression: Any, rule: str) -> None:
    assert rule in refusal(made, **{setting: expression})
