"""The retrain flow on a made table, with a real Prefect server, real DVC and a real MLflow store."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema

from flows.retrain import Retrained, retrain
from tasks import params
from tasks.promotion import ledger, outcome, recipe, registry
from tasks.runtime import overrides, pipeline, workspaces
from tasks.runtime.pipeline import StageFailed
from tasks.serving.journal import open_journal
from tests.flows.conftest import Project, shown, task_runs

STAGES = ["ingest", "clean", "features", "tune", "train", "evaluate", "record"]
LATER = datetime(2024, 3, 12)
LIGHT = {"tune.trials": 2, "train.seeds": 1, "evaluate.baselines": ["constant"]}  # where the search is not the law


@dataclass(frozen=True)
class Story:
    """A first retrain, the same again, and one later."""

    first: Retrained
    again: Retrained
    later: Retrained
    known: registry.Registry


@pytest.fixture(scope="module")
def made_before() -> None:
    """Here every stage runs."""


@pytest.fixture(scope="module")
def story(project: Project) -> Story:
    first, again = retrain(), retrain()
    later = retrain(as_of=LATER, trials=3, reason="later", decision="a-decision")
    return Story(first, again, later, registry.open_registry(params.load(project.folder / "params.yaml").registry))


def test_a_first_model_that_beats_the_baselines_becomes_champion(story: Story) -> None:
    assert story.first.verdict.outcome == "PROMOTE"
    assert story.first.version == 1


def test_every_stage_of_dvc_yaml_runs_once_in_order(story: Story) -> None:
    assert [stage.name for stage in story.first.stages] == STAGES
    assert {stage.status for stage in story.first.stages} == {"ran"}


def test_when_nothing_changed_nothing_runs_and_no_version_is_made(story: Story) -> None:
    assert {stage.status for stage in story.again.stages if stage.name != "ingest"} <= {"cached", "unchanged"}
    assert story.again.verdict.outcome == "HOLD"
    assert story.again.version is None
    assert story.again.run_id == story.first.run_id
    assert "Same recipe and same data" in story.again.verdict.reasons[0]


def test_when_nothing_changed_the_run_that_serves_keeps_its_verdict(story: Story) -> None:
    shown = story.known.runs.read_data(story.first.run_id).tags
    assert (shown["evergreen.verdict"], shown["evergreen.against"]) == ("PROMOTE", "baselines")
    assert story.known.read_version(1).tags["evergreen.verdict"] == "PROMOTE"


def test_a_challenger_is_judged_against_the_champion_by_its_stored_twin(story: Story) -> None:
    assert story.later.as_of == LATER.isoformat()
    assert story.later.run_id != story.first.run_id
    assert {"gain", "low", "high", "rows", "blocks"} <= story.later.verdict.figures.keys()
    assert "at the same age" in " ".join(story.later.verdict.reasons)


def test_the_ledger_holds_a_promotion_in_three_marks_and_answers_every_decision(story: Story) -> None:
    entries = story.known.read_ledger()
    promoted = [entry.mark for entry in entries if entry.version == 1]
    assert promoted == ["alias moved", "done"]
    answers = [entry for entry in entries if entry.decision == "a-decision"]
    assert answers
    assert {entry.outcome for entry in answers} == {story.later.verdict.outcome}


def test_what_a_retrain_took_is_on_its_verdict_its_run_its_version_and_in_the_ledger(story: Story) -> None:
    took, figures = {stage.name: stage.cpu for stage in story.first.stages}, story.first.verdict.figures
    assert figures["kind"] == "search"
    assert figures["cpu"].keys() == {*STAGES, "judge"}
    assert {name: figures["cpu"][name] for name in STAGES} == pytest.approx(took, abs=0.01)
    assert figures["cpu"]["judge"] > 0
    assert figures["cpu_s"] == pytest.approx(sum(figures["cpu"].values()))
    assert figures["cost"] == pytest.approx(figures["cpu_s"] / 3600 * 0.05)
    shown = story.known.runs.read_data(story.first.run_id)
    assert shown.metrics["cpu.tune"] == pytest.approx(took["tune"], abs=0.01)
    assert shown.metrics["cpu_s"] >= 0.9 * figures["cpu_s"]  # judged again since, by a quicker or slower look
    tags = story.known.read_version(1).tags
    assert float(tags["evergreen.cpu_s"]) == pytest.approx(figures["cpu_s"], abs=0.1)
    assert tags["evergreen.kind"] == "search"
    promoted = next(entry for entry in story.known.read_ledger() if entry.mark == "intent")
    assert promoted.cpu == figures["cpu_s"]


def test_a_stage_that_was_taken_from_the_cache_costs_nothing_now(story: Story) -> None:
    ran = {stage.name for stage in story.again.stages if stage.status == "ran"}
    assert story.again.verdict.figures["cpu"].keys() == {*ran, "judge"}
    assert story.again.verdict.figures["cpu_s"] < story.first.verdict.figures["cpu_s"]
    assert ledger.find_last_cost(story.known.read_ledger(), "search") == story.later.verdict.figures["cpu_s"]


def test_each_stage_is_a_task_run_of_its_name_below_those_it_needs(story: Story) -> None:
    assert story.first.stages
    assert all(len(task_runs(stage)) >= 3 for stage in STAGES)  # other tests use this server too
    assert any("wait_for" in run.task_inputs for run in task_runs("clean"))


def test_the_prefect_ui_gets_the_verdict_the_metrics_and_a_link(story: Story) -> None:
    assert all(shown(key) for key in ("verdict", "metrics", "stages"))
    links = shown("mlflow-run")
    assert all(any(run.run_id in link for link in links) for run in (story.first, story.later))


def test_the_evidence_is_a_picture_in_both_uis_and_candidates_are_comparable(story: Story, tmp_path: Path) -> None:
    assert any(picture.startswith("data:image/png;base64,") for picture in shown("verdict-picture"))
    picture = story.known.runs.fetch(story.later.run_id, "pictures/verdict.png", tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    data = story.known.runs.read_data(story.later.run_id)
    assert data.tags["evergreen.against"] == "version 1"
    assert data.tags["evergreen.verdict"] == story.later.verdict.outcome
    gain, bound = outcome.find_gain(story.later.verdict.figures)
    assert (data.metrics.get("gate.gain"), data.metrics.get("gate.bound")) == pytest.approx((gain, bound), rel=1e-3)
    assert any("viewStateShareKey=against-version-1" in link for link in shown("mlflow-compare"))
    together = story.known.tracking.search_runs(story.known.runs.experiment, "tags.`evergreen.against` = 'version 1'")
    assert story.later.run_id in {run.info.run_id for run in together}


def test_each_candidate_has_a_card_of_itself_and_of_its_data_in_both_uis(story: Story, tmp_path: Path) -> None:
    runs, run_id = story.known.runs, story.first.run_id
    card, data, bill = (
        runs.fetch(run_id, name, tmp_path).read_text() for name in ("model_card.md", "data_card.md", "sbom.json")
    )
    assert "changed since" not in data
    later = runs.fetch(story.later.run_id, "data_card.md", tmp_path / "later").read_text()
    assert "## What changed since version 1\n\nNo table, column or rule" in later
    assert card in shown("model-card")
    assert data in shown("data-card")
    assert card.startswith("# Model card: made, version 1\n")
    tags = runs.read_data(run_id).tags
    assert tags["evergreen.record"] in card
    assert tags["evergreen.recipe"] in card
    loss = story.first.reports["metrics"]["log_loss"]
    stated, low, high = map(
        float, re.findall(r"its log loss is ([\d.]+) \(95% interval ([\d.]+) to ([\d.]+)\)", card)[0]
    )
    assert stated == pytest.approx(loss, rel=1e-3)
    assert low < loss < high
    assert {"xgboost-cpu", "prefect"} <= {part["name"] for part in json.loads(bill)["components"]}
    counts = [
        line.strip("| ").split(" | ") for line in data.partition("## What became of the rows")[2].splitlines()[2:]
    ]
    rows = [list(map(int, (cell.replace(",", "") for cell in line[1:]))) for line in counts[2:4]]
    assert rows
    assert all(read == sum(rest) > 0 for read, *rest in rows)


def test_the_parameters_are_typed_for_the_form_of_the_prefect_ui(story: Story) -> None:
    assert story
    properties = parameter_schema(retrain).properties
    assert properties.keys() == {"as_of", "kind", "trials", "budget", "reason", "settings", "force"}
    assert "date-time" in json.dumps(properties["as_of"])
    assert "minimum" in json.dumps(properties["trials"])


def test_a_version_leads_back_to_its_commit_lock_params_and_period(story: Story, tmp_path: Path) -> None:
    version = story.known.read_version(1)
    assert len(version.commit) == 40
    tags = version.tags
    wanted = {"evergreen.environment", "evergreen.pii_key_id", "evergreen.data.from", "evergreen.data.rows"}
    assert wanted <= tags.keys()
    lock = yaml.safe_load(story.known.runs.fetch(version.run_id, "dvc.lock", tmp_path).read_text())
    assert lock["stages"].keys() >= set(STAGES) - {"record"}
    assert params.load(story.known.runs.fetch(version.run_id, "params.yaml", tmp_path)).registry.model == "made"


def test_the_checkout_is_not_edited(story: Story, project: Project) -> None:
    assert story
    status = subprocess.run(["git", "status", "--porcelain"], cwd=project.folder, capture_output=True, text=True)
    assert status.stdout == ""
    assert not (project.folder / "dvc.lock").exists()


def test_no_workspace_is_left(story: Story, project: Project) -> None:
    assert story
    assert [path for path in (project.home / "workspaces").iterdir() if path.is_dir()] == []


def test_dvc_repro_in_the_checkout_gives_the_hashes_of_the_flow(story: Story, project: Project, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    shutil.copytree(project.folder, copy)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=copy, env=env, check=True)
    made = json.loads((copy / "reports" / "record.json").read_text())
    assert made == {"record": story.first.record}
    lock = pipeline.read_lock(copy)["stages"]
    assert {out["path"] for out in lock["train"]["outs"]} >= {"models/model.ubj", "models/twin.ubj"}


def test_a_failed_stage_fails_the_flow_with_the_stages_own_error(story: Story) -> None:
    assert story
    with pytest.raises(Exception, match=r"`bad rows <= clean.max_bad_share` must hold"):
        retrain(settings={"contract.orders.columns.distance.max": 5}, as_of=LATER)


def test_sizes_that_do_not_fit_the_table_are_refused_before_anything_is_spent(story: Story) -> None:
    assert story
    with pytest.raises(StageFailed, match=r"gate.min_rows is 100,000, but split.holdout \(14d\) holds [\d,]+ rows"):
        retrain(settings={"gate.min_rows": 100_000}, as_of=LATER)
    newest = workspaces.list_workspaces(params.home())[-1]
    assert (newest / "data" / "raw").exists()
    assert not (newest / "data" / "clean").exists()


def test_a_decision_whose_retrain_fails_is_answered_with_the_reason_and_told_once(story: Story) -> None:
    bad = {"contract.orders.columns.distance.max": 5}
    with pytest.raises(Exception, match="max_bad_share"):
        retrain(settings=bad, decision="in vain", as_of=LATER)
    assert retrain(settings=bad, decision="in vain", as_of=LATER) is None  # answered
    (line,) = (entry for entry in story.known.read_ledger() if entry.decision == "in vain")
    assert (line.mark, line.outcome, line.as_of) == ("verdict", "HOLD", LATER)
    assert "max_bad_share" in line.reasons[0]
    assert (line.kind, line.cpu > 0) == ("search", True)
    assert ledger.count_looks(story.known.read_ledger(), line.champion) == len(looks_before(story, line))
    journal = open_journal(params.load().journal)
    assert journal.read("alerts")["cause"].to_pylist().count("failed in vain") == 1


def looks_before(story: Story, line: ledger.Entry) -> list[ledger.Entry]:
    lines = [
        entry for entry in story.known.read_ledger() if entry.mark == "verdict" and entry.champion == line.champion
    ]
    return [one for one in lines if one.counts_as_look]


def test_a_promotion_that_something_newer_overtook_is_an_answer(story: Story) -> None:
    story.known.append(ledger.Entry("superseded", "overtaken", LATER))
    assert retrain(decision="overtaken", as_of=LATER) is None


def test_the_back_off_is_asked_before_the_stages_run_and_answers_the_decision(story: Story) -> None:
    champion = story.known.find_champion()
    assert champion
    story.known.append(ledger.Entry("verdict", "a look", LATER, champion=champion.number, outcome="HOLD"))
    before = len(task_runs("ingest"))
    later, settings = LATER + timedelta(hours=1), {"gate.backoff": "7d"}
    assert retrain(as_of=later, settings=settings, decision="too soon") is None
    assert len(task_runs("ingest")) == before
    (line,) = (entry for entry in story.known.read_ledger() if entry.decision == "too soon")
    assert (line.outcome, line.counts_as_look) == ("HOLD", False)
    assert "The last look, at 2024-03-12 00:00, did not promote." in line.reasons[0]


def test_a_setting_that_does_not_exist_is_refused_by_name(story: Story) -> None:
    assert story
    with pytest.raises(ValueError, match=r"tune.trials"):
        retrain(settings={"tune.trails": 3})


def test_a_refresh_fits_the_champions_recipe_and_asks_what_age_costs(
    story: Story, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    champion = story.known.find_champion()
    assert champion
    done = retrain(as_of=LATER + timedelta(days=4), kind="refresh", reason="refresh")
    assert done
    tuned = recipe.fetch_tuned(story.known, champion.run_id)
    assert (done.reports["tuned"]["params"], done.reports["tuned"]["rounds"]) == (tuned.params, tuned.rounds)
    assert done.reports["tuned"]["ended_by"] == "recipe"
    assert done.verdict.figures["kind"] == "refresh"
    assert done.verdict.figures["cpu"]["evidence"] > 0
    assert ledger.find_last_cost(story.known.read_ledger(), "refresh") == done.verdict.figures["cpu_s"]
    assert done.verdict.reasons
    run = story.known.runs.fetch(done.run_id, "params.yaml", tmp_path)
    assert yaml.safe_load(run.read_text())["tune"]["recipe"]["rounds"] == tuned.rounds
    assert any((params.home() / "evidence").iterdir())
    assert any(line.startswith("evidence: ") for line in caplog.messages)


def test_money_that_is_spent_starts_no_retrain_and_says_so(story: Story, project: Project) -> None:
    assert story
    path = project.folder / "params.yaml"
    text = path.read_text()
    overrides.override_params(path, {"policy.money": 1e-9})
    try:
        with pytest.raises(ValueError, match=r"policy\.money .* With --force it starts all the same"):
            retrain(as_of=LATER + timedelta(days=4), kind="refresh")
    finally:
        path.write_text(text)


def test_a_regression_needs_no_python(project: Project, story: Story) -> None:
    assert project
    assert story
    done: Any = retrain(
        reason="regression",
        settings={
            "label.task": "regression",
            "label.expression": "delay",
            "gate.metric": "rmse",
            "registry.model": "made-numbers",
            **LIGHT,
        },
    )
    assert done.verdict.outcome == "PROMOTE"
    assert {"rmse", "mae", "r2"} <= done.reports["metrics"].keys()
