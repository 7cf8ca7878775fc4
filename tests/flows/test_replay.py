"""The replay flow on a made table, once: its task runs, artifacts and MLflow run, and that nothing else is touched."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from flows.replay import Replayed, replay
from tasks import params
from tasks.promotion import registry
from tasks.replay.compare import Comparison
from tests.conftest import write_params
from tests.flows.conftest import Project, shown, task_runs

SINCE, UNTIL = datetime(2024, 2, 15), datetime(2024, 3, 11)
WEEK = timedelta(days=7)
SETTINGS = {
    "replay": {"policies": ["never", "every:14d"], "step": "7d", "dates": 1, "trials": 2},
    "policy": {"min_rows": 50, "cpu_price": 3600},
}


@dataclass(frozen=True)
class Story:
    """The flow, and the flow again."""

    first: Comparison
    again: Comparison
    candidates: dict[str, int]  # after the first: their times of change
    adopted: Replayed  # from two first dates, with never alone
    params: str  # after that


@pytest.fixture(scope="module")
def story(project: Project) -> Story:
    write_params({**project.raw, **SETTINGS}, project.folder)
    first = replay(since=SINCE, until=UNTIL).comparison
    candidates = changed(project.home)
    again = replay(since=SINCE, until=UNTIL, policies=["performance", "every:14d"])
    adopted = replay(since=SINCE, until=UNTIL, dates=2, last_date=SINCE + WEEK, policies=["never"], adopt=True)
    params_file = (project.folder / "params.yaml").read_text()
    write_params({**project.raw, **SETTINGS}, project.folder)
    return Story(first, again.comparison, candidates, adopted, params_file)


def changed(home: Path) -> dict[str, int]:
    paths = (home / "replay" / "candidates").glob("2*")
    return {path.name: path.stat().st_mtime_ns for path in paths if "evidence" not in path.name}


def test_every_policy_is_walked_and_charged(story: Story) -> None:
    assert [line.policy for line in story.first.lines] == ["never", "every:14d"]
    (retrain,) = story.first.line("every:14d").retrains
    assert retrain.as_of == SINCE + 2 * WEEK
    assert story.first.line("every:14d").cost == pytest.approx(retrain.cpu, abs=0.01)


def test_again_nothing_is_trained_and_never_is_always_there(story: Story, project: Project) -> None:
    assert story.candidates.items() <= changed(project.home).items()
    assert len(story.candidates) == 2
    assert len(changed(project.home)) == 3  # with that of the second date
    assert [line.policy for line in story.again.lines] == ["never", "performance", "every:14d"]
    assert story.again.line("every:14d") == story.first.line("every:14d")


def test_what_is_recommended_is_written_into_the_params(story: Story) -> None:
    assert [walk.date for walk in story.adopted.comparison.line("never").walks] == [SINCE, SINCE + WEEK]
    assert story.adopted.adopted
    written = yaml.safe_load(story.params)["policy"]
    assert {f"policy.{name}": written[name] for name in ("signals", "search_every")} == (
        story.adopted.recommendation.settings
    )


def test_the_ui_has_the_tables_and_the_picture(story: Story) -> None:
    assert any("| every:14d |" in text and "Recommended: " in text for text in shown("replay"))
    for key in ("replay-table", "replay-costs"):
        assert {len(json.loads(text)) for text in shown(key)} == {1, 2, 3}
    assert all(text.startswith("data:image/png;base64,") for text in shown("replay-picture"))
    assert len(shown("mlflow-run")) >= len([story.first, story.again])  # the server is other modules' too


def test_each_model_is_a_task_run_of_its_moment(story: Story) -> None:
    candidates = [f"candidate {retrain.as_of:%Y-%m-%d}" for retrain in story.first.line("every:14d").retrains]
    assert all(task_runs(name) for name in [*candidates, "features"])


@pytest.mark.usefixtures("story")
def test_mlflow_has_the_files_and_the_curves(project: Project) -> None:
    known = registry.open_registry(params.load(project.folder / "params.yaml").registry)
    runs = known.tracking.client.search_runs([known.runs.experiment], "tags.`evergreen.replay` != ''")
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    newest = sorted(runs, key=lambda run: run.info.start_time)[1]
    assert {artifact.path for artifact in known.tracking.client.list_artifacts(newest.info.run_id)} == {
        "replay.json",
        "replay.md",
        "replay.png",
    }
    assert len(known.tracking.client.get_metric_history(newest.info.run_id, "log_loss/every 14d")) == 4


@pytest.mark.usefixtures("story")
def test_what_really_serves_is_not_touched(project: Project) -> None:
    known = registry.open_registry(params.load(project.folder / "params.yaml").registry)
    assert (known.find_champion(), known.read_ledger(), known.list_versions()) == (None, [], [])
    assert not (project.home / "journal").exists()
    assert not (project.home / "studies").exists()


def test_an_unknown_policy_fails_before_anything_is_run() -> None:
    with pytest.raises(ValueError, match="a policy must be one of never"):
        replay(policies=["sometimes"])
