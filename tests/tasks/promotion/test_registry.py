"""promotion.registry on a real MLflow database: runs are whole or absent, promotions happen once, the ledger grows."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import params
from tasks.promotion import changes, ledger, registry, tracking
from tasks.promotion.bundle import Bundle
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, open_registry
from tasks.promotion.runs import Dataset, Trial
from tasks.training.model import Model, import_xgboost, make_spec

AS_OF = datetime(2013, 7, 1)
BETTER = {"outcome": "PROMOTE", "reasons": ["It is better."], "gain": 0.01}
FEATURES = ({"name": "size", "kind": "number"}, {"name": "store", "kind": "category"})
TRIALS = tuple(Trial(i, "complete", 1 / (i + 1), {"eta": i / 10}, rounds=10) for i in range(5))
ELSEWHERE = """
import sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
served = mlflow.pyfunc.load_model(sys.argv[2])
rows = pd.DataFrame({"size": [0.5, None, -1.0], "store": ["north", "never seen", None]})
assert "tasks" not in sys.modules
print([float(value) for value in served.predict(rows)])
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making its tables costs seconds. Each test has experiments and a model of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def known(store: str, request: pytest.FixtureRequest) -> Registry:
    name = request.node.name
    return open_registry(params.Registry(model=name, experiment=name, top_trials=2), uri=store)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A trained model and everything else that a run holds."""
    folder = tmp_path_factory.mktemp("made")
    model, table = small_model()
    for name in ("model.ubj", "twin.ubj"):
        (folder / name).write_bytes(model.to_bytes())
    (folder / "files" / "reports").mkdir(parents=True)
    (folder / "files" / "dvc.lock").write_text("stages: {}\n")
    (folder / "files" / "reports" / "metrics.json").write_text("{}")
    return {
        "name": "2013-07-01 · 3f2a91c",
        "note": "A **run**.",
        "params": {f"tune.{i:03}": i for i in range(120)},  # more than one call takes
        "metrics": {"log_loss": 0.4},
        "counts": {"constant.log_loss": 0.5},
        "tags": {"evergreen.commit": "3f2a91c"},
        "datasets": [Dataset("features", "training", "dvc://data/features@abc", "a" * 32 + ".dir", 100, FEATURES)],
        "trials": [*TRIALS, Trial(5, "pruned", None, {"eta": 0.9})],
        "files": folder / "files",
        "bundle": Bundle(folder / "model.ubj", folder / "twin.ubj", FEATURES, table.slice(0, 3)),
    }


def small_model() -> tuple[Model, pa.Table]:
    rng = np.random.default_rng(0)
    table = pa.table({"size": rng.normal(size=90), "store": pa.array(rng.choice(["north", "south"], 90).tolist())})
    label = (rng.random(90) < 0.4).astype(float)
    spec = make_spec(table, label, task="binary")
    xgb = import_xgboost()
    data = xgb.QuantileDMatrix(spec.encode(table), label)
    return Model(xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 5), spec), table


def statuses(known: Registry, record: str) -> list[str]:
    runs = known.tracking.client.search_runs([known.runs.experiment], f"tags.`evergreen.record` = '{record}'")
    return sorted(run.info.status for run in runs)


# --- runs


def test_a_record_is_logged_once(known: Registry, made: dict[str, Any]) -> None:
    assert known.runs.find("r1") is None
    run_id = known.runs.log("r1", **made)
    assert known.runs.log("r1", **made) == run_id == known.runs.find("r1")
    assert statuses(known, "r1") == ["FINISHED"]


def test_a_killed_run_is_never_taken_for_a_whole_one(known: Registry, made: dict[str, Any]) -> None:
    left = known.tracking.client.create_run(known.runs.experiment, tags={"evergreen.record": "r1"}).info.run_id
    assert known.runs.find("r1") is None
    assert known.runs.log("r1", **made) != left
    assert statuses(known, "r1") == ["FINISHED", "KILLED"]


def test_a_run_that_could_not_be_logged_whole_is_absent(known: Registry, made: dict[str, Any], tmp_path: Path) -> None:
    broken = replace(made["bundle"], model=tmp_path / "missing.ubj")
    with pytest.raises(Exception, match=r"missing\.ubj"):
        known.runs.log("r1", **{**made, "bundle": broken})
    assert known.runs.find("r1") is None
    assert known.runs.log("r1", **made) == known.runs.find("r1")
    assert statuses(known, "r1") == ["FAILED", "FINISHED"]


def test_a_run_holds_what_the_record_holds(known: Registry, made: dict[str, Any], tmp_path: Path) -> None:
    run = known.tracking.client.get_run(known.runs.log("r1", **made))
    assert run.info.run_name == made["name"]
    assert run.data.params["tune.119"] == "119"
    assert run.data.metrics["log_loss"] == 0.4
    assert run.data.metrics["constant.log_loss"] == 0.5
    data = run.inputs.dataset_inputs[0].dataset
    assert (data.name, data.digest, json.loads(data.source)) == (
        "features",
        "a" * 32 + ".dir",
        {"uri": "dvc://data/features@abc"},
    )
    assert known.runs.fetch(run.info.run_id, "reports/metrics.json", tmp_path).read_text() == "{}"
    assert known.tracking.find_link(run.info.run_id).startswith("http://127.0.0.1:5000/#/experiments/")


def test_all_trials_are_a_table_and_the_best_are_runs(known: Registry, made: dict[str, Any], tmp_path: Path) -> None:
    run_id = known.runs.log("r1", **made)
    history = known.tracking.client.get_metric_history(run_id, "trial_best")
    assert [(point.step, point.value) for point in history] == [(trial.number, trial.value) for trial in TRIALS]
    table = json.loads(known.runs.fetch(run_id, "trials.json", tmp_path).read_text())
    assert len(table["data"]) == len(made["trials"])
    assert table["columns"][-1] == "eta"
    children = known.tracking.client.search_runs([known.runs.experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert sorted(child.info.run_name for child in children) == ["trial 3", "trial 4"]


def test_the_model_answers_in_another_process_that_knows_nothing_of_this_project(
    known: Registry, made: dict[str, Any], store: str, tmp_path: Path
) -> None:
    changes.promote(known, known.runs.log("r1", **made), decision="d1", verdict=BETTER, as_of=AS_OF, tags={})
    quiet = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    asked = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, store, f"models:/{known.model}@champion"],
        cwd=tmp_path,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    rows = pa.table({"size": [0.5, None, -1.0], "store": ["north", None, None]})
    model, _ = small_model()
    assert json.loads(asked.stdout) == pytest.approx(model.predict(rows).tolist(), abs=1e-7)


# --- versions


def test_there_is_no_champion_before_the_first_promotion(known: Registry) -> None:
    assert known.champion() is None
    assert known.versions() == []
    with pytest.raises(ValueError, match=r"has no version 7: choose one of \[\]"):
        known.version(7)


def test_an_artifact_arrives_whole_or_is_named(known: Registry, made: dict[str, Any], tmp_path: Path) -> None:
    version = changes.promote(known, known.runs.log("r1", **made), decision="d1", verdict=BETTER, as_of=AS_OF, tags={})
    for name in ("model.ubj", "twin.ubj"):
        assert (
            known.runs.fetch(version.run_id, name, tmp_path / "got").read_bytes() == (made["bundle"].model).read_bytes()
        )
    assert sorted(path.name for path in known.runs.fetch(version.run_id, "reports", tmp_path / "got").iterdir()) == [
        "metrics.json"
    ]
    with pytest.raises(ValueError, match="has no artifact 'poem'"):
        known.runs.fetch(version.run_id, "poem", tmp_path / "got")
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["model.ubj", "reports", "twin.ubj"]


def test_one_decision_makes_one_version(known: Registry, made: dict[str, Any]) -> None:
    run_id = known.runs.log("r1", **made)
    first = known.register(run_id, decision="d1", description="", tags={})
    assert known.register(run_id, decision="d1", description="", tags={}) == first
    assert known.register(run_id, decision="d2", description="", tags={}).number == 2


def test_a_version_made_twice_by_two_machines_at_once_stays_once(known: Registry, made: dict[str, Any]) -> None:
    run_id = known.runs.log("r1", **made)
    first = known.register(run_id, decision="d1", description="", tags={})
    theirs = known.tracking.client.create_model_version(
        known.model, first.tags.get("source", "x"), run_id, tags={"evergreen.decision": "d1"}
    )
    assert known._keep_first("d1", int(theirs.version)) == first
    assert [version.number for version in known.versions()] == [1]


# --- promotion


def test_a_promotion_moves_the_alias_and_leaves_three_marks(known: Registry, made: dict[str, Any]) -> None:
    tags = {"flow_run": "f1"}
    version = changes.promote(
        known, known.runs.log("r1", **made), decision="d1", verdict=BETTER, as_of=AS_OF, tags=tags
    )
    assert known.champion() == version
    assert (version.number, version.record, version.as_of, version.commit) == (1, "r1", AS_OF, "3f2a91c")
    assert version.tags["evergreen.flow_run"] == "f1"
    assert json.loads(version.tags["evergreen.verdict.figures"]) == BETTER
    assert [(line.mark, line.version) for line in known.ledger()] == [("intent", None), ("alias moved", 1), ("done", 1)]


def test_a_decision_that_is_done_never_moves_the_alias_back(known: Registry, made: dict[str, Any]) -> None:
    run_id = known.runs.log("r1", **made)
    first = changes.promote(known, run_id, decision="d1", verdict=BETTER, as_of=AS_OF, tags={})
    second = changes.promote(known, run_id, decision="d2", verdict=BETTER, as_of=AS_OF, tags={})
    lines = known.ledger()
    assert changes.promote(known, run_id, decision="d1", verdict=BETTER, as_of=AS_OF, tags={}) == first
    assert known.champion() == second
    assert known.ledger() == lines
    assert changes.finish_open(known) == []


def test_an_open_intent_is_finished_once(known: Registry, made: dict[str, Any]) -> None:
    known.append(intent("d1", known.runs.log("r1", **made)))
    finished = changes.finish_open(known)
    assert [version.number for version in finished] == [1]
    assert known.champion() == finished[0]
    assert changes.finish_open(known) == []
    assert [line.mark for line in known.ledger()] == ["intent", "alias moved", "done"]


def test_of_several_open_intents_the_newest_is_finished(known: Registry, made: dict[str, Any]) -> None:
    run_id = known.runs.log("r1", **made)
    for decision in ("d1", "d2", "d3"):
        known.append(intent(decision, run_id))
    assert [version.decision for version in changes.finish_open(known)] == ["d3"]
    marks = [(line.mark, line.decision) for line in known.ledger() if line.mark != "intent"]
    assert marks == [("superseded", "d1"), ("superseded", "d2"), ("alias moved", "d3"), ("done", "d3")]
    with pytest.raises(ValueError, match="d1 was overtaken by a later one"):
        changes.promote(known, run_id, decision="d1", verdict=BETTER, as_of=AS_OF, tags={})


def test_an_intent_that_a_rollback_overtook_is_not_finished(known: Registry, made: dict[str, Any]) -> None:
    known.append(intent("d1", known.runs.log("r1", **made)))
    known.append(Entry("rolled back", "by-hand", AS_OF, version=1))
    assert changes.finish_open(known) == []
    assert known.champion() is None


# --- rollback


def crown(known: Registry, made: dict[str, Any], count: int) -> list[registry.Version]:
    """So many champions, one after another, each of a run of its own."""
    runs = [known.runs.log(f"r{i}", **{**made, "trials": []}) for i in range(1, count + 1)]
    told: dict[str, Any] = {"verdict": BETTER, "as_of": AS_OF, "tags": {}}
    return [changes.promote(known, run_id, decision=f"p{i}", **told) for i, run_id in enumerate(runs, 1)]


def back(known: Registry, decision: str, **asked: Any) -> int:
    return changes.rollback(known, decision=decision, as_of=AS_OF, reasons=["It was worse."], **asked).number


def serving(known: Registry) -> int | None:
    champion = known.champion()
    return champion and champion.number


def marks_of(known: Registry, decision: str) -> list[tuple[str, int | None, int | None]]:
    return [(line.mark, line.version, line.champion) for line in known.ledger() if line.decision == decision]


def test_a_rollback_gives_the_alias_back_and_leaves_two_marks(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 2)
    assert back(known, "b1") == 1 == serving(known)
    assert marks_of(known, "b1") == [("rollback", 1, 2), ("rolled back", 1, 2)]
    assert known.ledger()[-1].reasons == ("It was worse.",)
    assert ledger.find_rolled_back(known.ledger()) == {2}
    assert changes.finish_open(known) == []


def test_a_rollback_asked_twice_acts_once(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 3)
    assert [back(known, "b1") for _ in range(2)] == [2, 2]
    assert (serving(known), ledger.find_rolled_back(known.ledger())) == (2, {3})


def test_a_second_rollback_goes_one_further_back_and_never_to_what_was_taken_down(
    known: Registry, made: dict[str, Any]
) -> None:
    crown(known, made, 3)
    assert [back(known, "b1"), back(known, "b2")] == [2, 1]
    assert ledger.find_rolled_back(known.ledger()) == {2, 3}
    with pytest.raises(ValueError, match="no version that may serve was champion before version 1"):
        back(known, "b3")
    assert serving(known) == 1


def test_a_rollback_may_name_any_champion_that_was_not_taken_down(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 3)
    assert back(known, "b1", to=1) == 1
    with pytest.raises(ValueError, match="before version 1"):
        back(known, "b2")  # version 2 came later: nobody is sent there without being told
    with pytest.raises(ValueError, match="version 3 was rolled back, and what was rolled back never serves again"):
        back(known, "b2", to=3)
    assert back(known, "b2", to=2) == 2
    assert ledger.find_rolled_back(known.ledger()) == {1, 3}


def test_what_cannot_be_rolled_back_says_why_and_changes_nothing(known: Registry, made: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="serves: there is nothing to roll back"):
        back(known, "b1")
    (first,) = crown(known, made, 1)
    known.register(first.run_id, decision="never promoted", description="", tags={})
    for to, why in ((7, "has no version 7"), (1, "serves already"), (2, "never champion, .* choose one of")):
        with pytest.raises(ValueError, match=why):
            back(known, "b1", to=to)
    with pytest.raises(ValueError, match="version 2 was to be taken down, but version 1 serves"):
        back(known, "b1", champion=2)
    assert (serving(known), ledger.find_rolled_back(known.ledger()), marks_of(known, "b1")) == (1, set(), [])


def test_what_was_rolled_back_is_never_promoted_again(known: Registry, made: dict[str, Any]) -> None:
    _, second = crown(known, made, 2)
    back(known, "b1")
    for decision in ("again", "and again"):
        with pytest.raises(ValueError, match="version 2 was rolled back, and what was rolled back never serves again"):
            changes.promote(known, second.run_id, decision=decision, verdict=BETTER, as_of=AS_OF, tags={})
    assert (
        changes.promote(known, second.run_id, decision="p2", verdict=BETTER, as_of=AS_OF, tags={}) == second
    )  # that is done
    assert (serving(known), len(known.versions())) == (1, 2)
    assert known.find_barred("r2", known.ledger()) == 2
    assert known.find_barred("r1", known.ledger()) is None


def test_an_open_promotion_of_what_was_rolled_back_is_never_finished(
    known: Registry, made: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, second = crown(known, made, 2)
    back(known, "b1")
    known.append(intent("another machine's", second.run_id))
    assert changes.finish_open(known) == []
    assert "would promote run" in caplog.text
    assert known.ledger()[-1].mark == "superseded"
    assert serving(known) == 1


def test_an_open_rollback_is_finished_once(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 2)
    known.append(Entry("rollback", "b1", AS_OF, version=1, champion=2))
    assert [version.number for version in changes.finish_open(known)] == [1]
    assert changes.finish_open(known) == []
    assert marks_of(known, "b1") == [("rollback", 1, 2), ("rolled back", 1, 2)]
    assert (serving(known), ledger.find_rolled_back(known.ledger())) == (1, {2})


def test_who_asks_again_after_a_rollback_was_cut_off_does_not_go_two_back(
    known: Registry, made: dict[str, Any]
) -> None:
    crown(known, made, 3)
    known.append(Entry("rollback", "b1", AS_OF, version=2, champion=3))
    known.tracking.client.set_registered_model_alias(known.model, registry.CHAMPION, "2")
    with pytest.raises(ValueError, match="version 2 had been cut off and is finished now: that version serves"):
        back(known, "b2")
    assert (serving(known), ledger.find_rolled_back(known.ledger())) == (2, {3})
    assert back(known, "b2") == 1


def test_a_rollback_that_a_promotion_overtook_is_not_finished(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 2)
    known.append(Entry("rollback", "b1", AS_OF, version=1, champion=2))
    third = changes.promote(known, known.runs.log("r3", **made), decision="p3", verdict=BETTER, as_of=AS_OF, tags={})
    assert changes.finish_open(known) == []
    assert known.champion() == third
    with pytest.raises(ValueError, match="b1 was overtaken by a later one: see what serves now"):
        back(known, "b1")


def test_a_rollback_overtakes_a_promotion_that_had_not_moved_the_alias(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 2)
    known.append(intent("p3", known.runs.log("r3", **made)))
    assert back(known, "b1") == 1
    assert changes.finish_open(known) == []
    assert [line.mark for line in known.ledger() if line.decision == "p3"] == ["intent", "superseded"]
    assert serving(known) == 1


def test_a_rollback_finishes_a_promotion_that_had_moved_the_alias_and_takes_it_down(
    known: Registry, made: dict[str, Any]
) -> None:
    crown(known, made, 1)
    run_id = known.runs.log("r2", **made)
    known.append(intent("p2", run_id))
    second = known.register(run_id, decision="p2", description="", tags={})
    known.tracking.client.set_registered_model_alias(known.model, registry.CHAMPION, str(second.number))
    assert back(known, "b1") == 1
    assert [line.mark for line in known.ledger() if line.decision == "p2"] == ["intent", "alias moved", "done"]
    assert ledger.find_rolled_back(known.ledger()) == {2}


def test_a_promotion_finishes_a_rollback_that_had_moved_the_alias(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 2)
    known.append(Entry("rollback", "b1", AS_OF, version=1, champion=2))
    known.tracking.client.set_registered_model_alias(known.model, registry.CHAMPION, "1")
    changes.promote(known, known.runs.log("r3", **made), decision="p3", verdict=BETTER, as_of=AS_OF, tags={})
    assert marks_of(known, "b1")[-1] == ("rolled back", 1, 2)
    assert (serving(known), ledger.find_rolled_back(known.ledger())) == (3, {2})


def test_the_predecessor_is_who_served_before_it_did_first(known: Registry, made: dict[str, Any]) -> None:
    first, second, third = crown(known, made, 3)
    assert [known.find_predecessor(each) for each in (first, second, third)] == [None, first, second]
    back(known, "b1")
    assert known.find_predecessor(second) == first
    back(known, "b2")
    assert known.find_predecessor(third) == first


def test_after_a_rollback_the_looks_at_the_version_that_serves_again_go_on(
    known: Registry, made: dict[str, Any]
) -> None:
    def judged(decision: str, champion: int, day: int) -> None:
        known.append(Entry("verdict", decision, AS_OF + timedelta(days=day), champion=champion, outcome="HOLD"))

    _, second = crown(known, made, 2)
    judged("a", 2, 1)
    assert looks(known, 2) == (
        1,
        AS_OF + timedelta(days=1),
    )
    assert back(known, "b1") == 1
    assert looks(known, 1) == (
        1,
        None,
    )  # the look that took the alias from it
    judged("b", 1, 2)
    assert looks(known, 1) == (
        2,
        AS_OF + timedelta(days=2),
    )
    assert ledger.count_looks(known.ledger(), second.number) == 1
    assert ledger.count_looks(known.ledger(), None) == 0


def looks(known: Registry, champion: int | None) -> tuple[int, datetime | None]:
    """How many, and when the last was."""
    return ledger.count_looks(known.ledger(), champion), ledger.find_last_look(known.ledger(), champion)


def intent(decision: str, run_id: str) -> Entry:
    return Entry("intent", decision, AS_OF, run=run_id, outcome="PROMOTE", verdict=BETTER)


# --- the ledger


def test_a_line_reads_as_it_was_written(known: Registry) -> None:
    reasons = tuple(f"Reason {i}, at some length: {'é' * 200}." for i in range(60))  # more than a tag holds
    figures = {"figures": {"carrier=UA": [0.1, None]}}
    line = known.append(Entry("verdict", "d1", AS_OF, champion=3, outcome="HOLD", reasons=reasons, verdict=figures))
    assert known.ledger() == [line]
    assert known.append(Entry("verdict", "d1", AS_OF, outcome="REJECT")) == line


def test_the_ledger_keeps_its_order_whatever_the_clocks_say(known: Registry) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    known.write_entry(Entry("verdict", "d1", AS_OF, outcome="HOLD", made_at=ahead))
    for decision in ("d2", "d3"):
        known.append(Entry("verdict", decision, AS_OF, outcome="HOLD"))
    assert [line.decision for line in known.ledger()] == ["d1", "d2", "d3"]


def test_a_line_that_was_sent_twice_counts_once(known: Registry) -> None:
    now = datetime.now(UTC)
    for late in range(2):
        known.write_entry(Entry("verdict", "d1", AS_OF, outcome="HOLD", made_at=now + timedelta(seconds=late)))
    assert [line.made_at for line in known.ledger()] == [now]


def test_looks_count_since_the_version_first_became_champion(known: Registry) -> None:
    def judged(decision: str, outcome: str, day: int, *, look: bool = True) -> None:
        as_of = AS_OF + timedelta(days=day)
        known.append(Entry("verdict", decision, as_of, champion=1, outcome=outcome, counts_as_look=look))

    assert looks(known, None) == (0, None)
    judged("a", "HOLD", 1)
    known.append(Entry("alias moved", "b", AS_OF, version=1))
    assert looks(known, 1) == (0, None)
    judged("c", "REJECT", 2)
    judged("d", "HOLD", 3, look=True)
    judged("e", "HOLD", 4, look=False)  # during a back-off nobody looked
    assert looks(known, 1) == (
        2,
        AS_OF + timedelta(days=3),
    )
    assert ledger.count_looks(known.ledger(), 2) == 0
    known.append(Entry("rolled back", "f", AS_OF, version=1))
    assert ledger.count_looks(known.ledger(), 1) == 2


def test_looks_at_first_models_count_their_refusals_since_there_last_was_a_champion(known: Registry) -> None:
    def judged(decision: str, day: int, *, champion: int | None = None, look: bool = True) -> None:
        as_of = AS_OF + timedelta(days=day)
        known.append(Entry("verdict", decision, as_of, champion=champion, outcome="HOLD", counts_as_look=look))

    judged("a", 1)
    judged("b", 2)
    judged("c", 3, look=False)
    assert looks(known, None) == (
        2,
        AS_OF + timedelta(days=2),
    )
    known.append(Entry("alias moved", "d", AS_OF, version=1))
    judged("e", 4, champion=1)
    assert looks(known, None) == (0, None)
    judged("f", 5)  # somebody took the alias off
    assert looks(known, None) == (
        1,
        AS_OF + timedelta(days=5),
    )
    assert ledger.count_looks(known.ledger(), 1) == 1


def test_a_ledger_of_another_format_is_refused_with_the_way_out(known: Registry) -> None:
    known.append(Entry("verdict", "d1", AS_OF, outcome="HOLD"))
    (run,) = known.tracking.client.search_runs([known.ledger_experiment])
    known.tracking.client.set_tag(run.info.run_id, "evergreen.format", "ledger/0")
    for ask in (known.ledger, lambda: changes.finish_open(known), lambda: known.append(Entry("verdict", "d2", AS_OF))):
        with pytest.raises(ValueError, match=r"is in format ledger/0, but .* reads ledger/1\. .* registry\.experiment"):
            ask()


# --- reaching MLflow


@pytest.mark.parametrize("listening", [False, True], ids=["a closed port", "a server that never answers"])
def test_a_silent_server_is_named_before_mlflow_waits_for_it(
    listening: bool, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlflow's own client would ask it for minutes."""
    assert known  # mlflow is imported
    monkeypatch.setattr("mlflow.MlflowClient", never)
    assert tracking.PROBE_TIMEOUT_S <= 10
    settings = params.Registry(model="m", experiment="e")
    with (
        taken_port(listening) as port,
        pytest.raises(ConnectionError, match=rf"MLflow server at http://127\.0\.0\.1:{port} does not answer"),
    ):
        open_registry(settings, uri=f"http://somebody:secret@127.0.0.1:{port}")


def never(*_: object) -> None:
    raise AssertionError("mlflow's client was asked")


def test_a_server_that_stops_answering_is_named(known: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with taken_port(listening=False) as port:
        uri = f"http://127.0.0.1:{port}"
        gone = replace(known, tracking=replace(known.tracking, client=MlflowClient(uri), uri=uri))
        for ask in (gone.champion, gone.ledger, lambda: gone.runs.find("r1"), lambda: gone.version(1)):
            with pytest.raises(ConnectionError, match="MLFLOW_TRACKING_URI"):
                ask()


@contextlib.contextmanager
def taken_port(listening: bool) -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listening:
            taken.listen()
        yield taken.getsockname()[1]


def test_no_password_is_shown() -> None:
    assert tracking.hide_password("https://me:secret@mlflow.example/x") == "https://mlflow.example/x"
    assert tracking.hide_password("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_the_address_is_the_environments_or_the_homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    assert tracking.find_address() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.find_address() == "http://mlflow:5000"


def test_importing_the_registry_does_not_import_mlflow() -> None:
    code = "import sys; from tasks.promotion import registry; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_opening_turns_telemetry_off_and_leaves_what_was_set(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    open_registry(params.Registry(model="m", experiment="e"), uri=store)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"


def test_a_deleted_experiment_is_named(known: Registry, store: str) -> None:
    known.tracking.client.delete_experiment(known.runs.experiment)
    with pytest.raises(ValueError, match="was deleted: restore it"):
        open_registry(params.Registry(model=known.model, experiment=known.model), uri=store)


# --- canary


def up(known: Registry, wanted: int | str, decision: str = "c1") -> int:
    return changes.put_up(known, wanted, decision=decision, as_of=AS_OF, reasons=["To try it."]).number


def away(known: Registry, decision: str = "e1", outcome: str | None = None) -> Entry | None:
    return changes.take_away(known, decision=decision, as_of=AS_OF, reasons=["Enough."], outcome=outcome)


def challenging(known: Registry) -> int | None:
    found = known.challenger()
    return found and found.number


def held(known: Registry, made: dict[str, Any], record: str = "held") -> registry.Version:
    """A version that nobody promoted."""
    run_id = known.runs.log(record, **{**made, "trials": []})
    return known.register(run_id, decision=f"register-{record}", description="", tags={})


def test_a_canary_begins_and_ends_with_a_line_each(known: Registry, made: dict[str, Any]) -> None:
    assert (known.challenger(), changes.settle_challenger(known), away(known)) == (None, None, None)
    crown(known, made, 1)
    second = held(known, made)
    assert [up(known, second.number), up(known, second.number, "asked again")] == [2, 2]
    assert (serving(known), challenging(known)) == (1, 2)
    begun = changes.settle_challenger(known)
    assert begun
    assert (begun.decision, begun.version, begun.champion) == ("c1", 2, 1)
    assert [away(known), away(known, "e2")] == [known.ledger()[-1], None]
    assert (challenging(known), changes.settle_challenger(known)) == (None, None)
    marks = [(line.mark, line.decision, line.version, line.outcome) for line in known.ledger()[-2:]]
    assert marks == [("canary", "c1", 2, None), ("canary over", "e1", 2, None)]
    assert up(known, 2, "c2") == 2  # nobody judged it: it may be tried again


def test_a_canary_that_was_cut_off_goes_by_the_ledger(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 1)
    second = held(known, made)
    known.append(Entry("canary", "c1", AS_OF, run=second.run_id, version=2, champion=1))
    assert challenging(known) is None  # killed before the alias came
    assert [changes.settle_challenger(known), challenging(known)] == [known.ledger()[-1], 2]
    assert up(known, 2, "again") == challenging(known) == 2
    known.append(Entry("canary over", "e1", AS_OF, version=2, outcome="REJECT"))
    assert challenging(known) == 2  # killed before the alias went
    assert (changes.settle_challenger(known), challenging(known)) == (None, None)
    assert [line.mark for line in known.ledger()].count("canary") == 1


def test_an_alias_that_somebody_set_by_hand_is_no_canary(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 1)
    held(known, made)
    known.tracking.client.set_registered_model_alias(known.model, registry.CHALLENGER, "2")
    assert (changes.settle_challenger(known), challenging(known)) == (None, None)


@pytest.mark.parametrize("moved", [False, True])
def test_an_alias_that_somebody_took_or_moved_goes_back_where_the_ledger_says(
    known: Registry, made: dict[str, Any], moved: bool
) -> None:
    crown(known, made, 1)
    held(known, made)
    held(known, made, "another")
    up(known, 2)
    known.tracking.client.delete_registered_model_alias(known.model, registry.CHALLENGER)
    if moved:
        known.tracking.client.set_registered_model_alias(known.model, registry.CHALLENGER, "3")
    found = changes.settle_challenger(known)
    assert found
    assert (found.version, challenging(known)) == (2, 2)


def test_a_challenger_that_somebody_deleted_is_no_challenger(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 1)
    held(known, made)
    up(known, 2)
    known.tracking.client.delete_model_version(known.model, "2")
    assert changes.settle_challenger(known) is None
    ended = away(known)
    assert ended
    assert ended.version == 2


def test_the_champions_own_model_may_not_challenge_it_under_another_number(
    known: Registry, made: dict[str, Any]
) -> None:
    (first,) = crown(known, made, 1)
    twin = known.register(first.run_id, decision="under another number", description="", tags={})
    for wanted, named in ((twin.number, "version 2"), (first.run_id, f"run {first.run_id}")):
        with pytest.raises(ValueError, match=f"{named} holds the model of version 1, the champion: put another up"):
            up(known, wanted)
    assert len(known.versions()) == 2


def test_who_may_not_challenge_is_told_why(known: Registry, made: dict[str, Any]) -> None:
    held(known, made)
    with pytest.raises(ValueError, match="serves: there is nothing to challenge"):
        up(known, 1)
    *_, third = crown(known, made, 2)
    for wanted, why in ((7, "has no version 7"), ("7f", "there is no run '7f': name a version"), ("", "no run ''")):
        with pytest.raises(ValueError, match=why):
            up(known, wanted)
    with pytest.raises(ValueError, match="version 3 is the champion"):
        up(known, third.number)
    up(known, 1)
    with pytest.raises(ValueError, match="version 1 is up already: take it away first"):
        up(known, 2)
    away(known)
    back(known, "b1")
    with pytest.raises(ValueError, match=r"version 3 was rolled back, .* choose another"):
        up(known, 3)
    assert challenging(known) is None


def test_a_run_that_nobody_promoted_may_challenge_as_a_version_of_its_own(
    known: Registry, made: dict[str, Any]
) -> None:
    crown(known, made, 1)
    run_id = known.runs.log("held", **{**made, "trials": []})
    assert [up(known, run_id), up(known, run_id)] == [2, 2] == [challenging(known)] * 2
    away(known, outcome="REJECT")
    with pytest.raises(ValueError, match="version 2 lost as a challenger"):
        up(known, run_id, "c2")
    assert len(known.versions()) == 2


def test_what_lost_as_a_challenger_is_never_put_up_or_promoted_again(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 1)
    second = held(known, made)
    up(known, 2)
    away(known, outcome="REJECT")
    why = "version 2 lost as a challenger, and what lost is never put up or promoted again"
    with pytest.raises(ValueError, match=why):
        up(known, 2, "c2")
    for version in (None, 2):
        with pytest.raises(ValueError, match=why):
            changes.promote(known, second.run_id, decision="p", verdict=BETTER, as_of=AS_OF, tags={}, version=version)
    twice = known.register(second.run_id, decision="under another number", description="", tags={})
    with pytest.raises(ValueError, match=why):
        up(known, twice.number, "c3")
    assert (
        serving(known),
        ledger.find_rejected(known.ledger()),
        ledger.find_barred(known.ledger()),
        known.find_barred("held", known.ledger()),
    ) == (1, {2}, {2}, 2)


def test_a_challenger_that_won_is_promoted_as_the_version_that_it_is(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 1)
    second = held(known, made)
    up(known, 2)
    told: dict[str, Any] = {"verdict": BETTER, "as_of": AS_OF + timedelta(days=9), "tags": {}, "version": 2}
    won = changes.promote(known, second.run_id, decision="won", **told)
    assert [changes.promote(known, second.run_id, decision="won", **told), known.champion()] == [won, won]
    assert (won.number, won.as_of, won.decision) == (2, second.as_of, "register-held")  # made of what it was made of
    assert marks_of(known, "won") == [("intent", 2, 1), ("alias moved", 2, 1), ("done", 2, 1)]
    assert ledger.count_looks(known.ledger(), 1) == 1  # the one that took the alias
    assert ledger.find_answered(known.ledger()) >= {"won"}
    assert back(known, "b1") == 1


def test_an_open_promotion_of_a_challenger_is_finished_once(known: Registry, made: dict[str, Any]) -> None:
    crown(known, made, 1)
    second = held(known, made)
    known.append(replace(intent("won", second.run_id), version=2, champion=1))
    assert "won" not in ledger.find_answered(known.ledger())
    known.tracking.client.set_registered_model_alias(known.model, registry.CHAMPION, "2")
    assert [version.number for version in changes.finish_open(known)] == [2]
    assert (changes.finish_open(known), len(known.versions())) == ([], 2)
