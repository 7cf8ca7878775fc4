"""What the model card says of the choices that made the model: offset, under-sampling, features that went, its size."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.data.manifest import FeaturesManifest, RawManifest
from tasks.params import Task
from tasks.promotion import card
from tasks.promotion.card import Facts
from tasks.promotion.interval import Estimate
from tasks.promotion.verdict import Verdict
from tests.tasks import small

CHOSEN = {"trial": 3, "size": 40_000.0, "best_trial": 5, "best_size": 90_000.0, "loss_more": 0.0012, "error": 0.002}


def write_card(task: Task, tuned: dict[str, Any] | None = None, **settings: Any) -> str:
    p = small.settings(task, **settings)
    metric = p.gate.metric
    facts = Facts(
        p=p,
        raw=RawManifest(as_of=small.AS_OF, limit=small.AS_OF, pii_key_id=None, tables={}),
        features=FeaturesManifest(as_of=small.AS_OF, rows=100, labelled=90),
        metrics={"rows": 20, metric: 0.5, "calibration_error": 0.01},
        leaderboard=[{"model": "candidate", metric: 0.5}],
        slices=[],
        tuned={"params": {"eta": 0.1}, "rounds": 7} | (tuned or {}),
        loss=Estimate(0.5, None, None),
        period=("2024-01-01", "2024-02-01"),
        importances=[("jam", 1.0)],
    )
    verdict = Verdict("HOLD", reasons=("not yet",), figures={})
    return card.render_model_card(replace(facts), verdict, version=None, run_id="run", lineage={})


@pytest.mark.parametrize(
    ("task", "tuned", "settings", "sentence"),
    [
        ("regression", {}, {"train.offset": "jam"}, "It learns what the label is above `jam`, and adds that again."),
        ("binary", {}, {"train.undersample": 0.1}, "It learnt from 10.0% of the most frequent class's rows"),
        (
            "binary",
            {"dropped": ["noise_1"]},
            {},
            "Dropped by the search, since they earned nothing on its folds: `noise_1`",
        ),
        ("binary", {"preferred": CHOSEN}, {}, "40 kB against 90, a loss more by 0.0012 ± 0.002 on the folds."),
        ("binary", {"preferred": CHOSEN | {"trial": 5}}, {}, "No smaller model of the search loses about as little."),
    ],
    ids=["offset", "undersample", "dropped", "smallest", "none smaller"],
)
def test_a_choice_is_named_where_it_was_made_and_nowhere_else(
    task: Task, tuned: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    assert sentence in write_card(task, tuned, **settings)
    assert sentence not in write_card(task)
