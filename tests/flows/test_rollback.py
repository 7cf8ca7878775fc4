"""The rollback flow with a real Prefect server and a real registry: the version before serves again, and it is told."""

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime

import pytest

from flows.rollback import RolledBack, rollback
from tasks import params
from tasks.promotion import ledger, registry
from tasks.serving import journal
from tests.flows.conftest import Project, shown
from tests.tasks.monitoring.test_predecessor import GOOD_MODEL, POOR_MODEL, Shop

LATER = datetime(2024, 3, 12)


@dataclass(frozen=True)
class Story:
    """Three champions, one after the other, and a rollback."""

    back: RolledBack
    known: registry.Registry


@pytest.fixture(scope="module")
def story(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Story:
    p = params.load(project.folder / "params.yaml")
    known = registry.open_registry(p.registry)
    shop = Shop(known, journal.open_journal(p.journal), tmp_path_factory.mktemp("runs"))
    for name, model in (("first", POOR_MODEL), ("second", GOOD_MODEL), ("third", POOR_MODEL)):
        shop.crown(name, model)
    return Story(rollback(reason="it is slow", as_of=LATER), known)


def test_the_version_before_serves_again(story: Story) -> None:
    champion = story.known.find_champion()
    assert champion
    assert (champion.number, story.back.serves, story.back.down) == (2, 2, 3)


def test_the_ledger_says_what_and_why(story: Story) -> None:
    lines = [line for line in story.known.read_ledger() if line.mark in ("rollback", "rolled back")]
    entries = [(line.version, line.champion, line.as_of, line.reasons) for line in lines]
    assert entries == [(2, 3, LATER, ("it is slow",))] * 2
    assert {line.decision.partition("-")[0] for line in lines} == {"rollback"}


def test_the_prefect_ui_shows_what_serves(story: Story) -> None:
    pages = "\n".join(shown("rollback"))
    assert f"# Version {story.back.serves} serves" in pages
    assert "it is slow" in pages


def test_a_finding_about_another_champion_takes_nothing_down(story: Story) -> None:
    with pytest.raises(ValueError, match="version 3 was to be taken down, but version 2 serves by now"):
        rollback(champion=3, decision="found before", reason="predecessor")
    assert ledger.find_rolled_back(story.known.read_ledger()) == {3}


@pytest.mark.faults  # two programs: with the other long ones
def test_from_a_terminal_it_says_what_serves_or_why_it_cannot(story: Story, project: Project) -> None:
    refused, done = terminal(project, "3"), terminal(project, "1")
    assert refused.returncode != 0
    assert "version 3 was rolled back, and what was rolled back never serves again" in refused.stderr
    assert done.returncode == 0, done.stderr[-3000:]
    assert "# Version 1 serves (as of 2024-03-01 00:00)" in done.stdout
    assert ledger.find_rolled_back(story.known.read_ledger()) == {2, 3}


def terminal(project: Project, to: str) -> subprocess.CompletedProcess[str]:
    from prefect.settings import PREFECT_API_URL

    env = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    command = [sys.executable, "-m", "flows.rollback", "--to", to]
    return subprocess.run(command, cwd=project.folder, env=env, capture_output=True, text=True, timeout=120)
