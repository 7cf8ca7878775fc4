"""Whole retrains beside those of test_retrain.py: by a recipe in the race, by another key, for several classes.

What the stages made for the first champion is in the cache here.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flows.retrain import Retrained, retrain
from tasks import params
from tasks.promotion import ledger, registry
from tests.flows.conftest import Project
from tests.flows.test_retrain import LATER, LIGHT

pytestmark = pytest.mark.faults  # with the other long ones


@pytest.fixture(scope="module")
def champion(recorded: Callable[[], registry.Version]) -> registry.Version:
    return recorded()


@pytest.fixture(scope="module")
def later(champion: registry.Version) -> Retrained:
    """A search whose recipe is not decided yet."""
    assert champion
    done = retrain(as_of=LATER, trials=3, reason="later")
    assert done
    return done


def test_a_contenders_look_fits_its_recipe_and_its_race_goes_on(later: Retrained) -> None:
    known = registry.open_registry(params.load().registry)
    before = ledger.find_contender(known.read_ledger())
    assert before
    done = retrain(as_of=LATER + timedelta(days=2), kind="contender", reason="contender")
    assert done
    assert done.reports["tuned"]["params"] == later.reports["tuned"]["params"]
    assert done.verdict.figures["kind"] == "contender"
    assert done.verdict.figures["race_recipe"] == before.recipe
    assert done.verdict.figures["race_since"] == before.since.isoformat()
    assert not done.verdict.counts_as_look


def test_another_key_for_the_pseudonyms_is_refused(champion: registry.Version, monkeypatch: pytest.MonkeyPatch) -> None:
    assert champion
    monkeypatch.setenv("EVERGREEN_PII_KEY", "another key, as long")
    with pytest.raises(ValueError, match="pseudonymised with the key"):
        retrain(settings=LIGHT, as_of=LATER)


def test_several_classes_need_no_python(project: Project) -> None:
    assert project
    expression = "CASE WHEN delay < 20 THEN 'early' WHEN delay < 40 THEN 'fair' ELSE 'late' END"
    done: Any = retrain(
        reason="multiclass",
        settings={
            "label.task": "multiclass",
            "label.expression": expression,
            "registry.model": "made-classes",
            **LIGHT,
        },
    )
    assert done.verdict.outcome == "PROMOTE"
    assert {"log_loss", "accuracy", "f1_macro"} <= done.reports["metrics"].keys()
