"""A checkout that was copied with its home lives on by itself: no flow writes a byte into the original."""

import shutil
from datetime import datetime
from pathlib import Path

import pytest

from flows.monitor import monitor
from flows.retrain import retrain
from flows.rollback import rollback
from flows.score import score
from tasks import params
from tasks.promotion import registry
from tasks.serving import journal
from tests.flows.conftest import Project
from tests.tasks.monitoring.test_predecessor import GOOD_MODEL, Shop
from tests.tasks.promotion.test_database_moved import snapshot


@pytest.mark.faults  # whole flows: with the other long ones
def test_flows_in_a_copy_leave_every_byte_and_time_of_the_original(project: Project, tmp_path: Path) -> None:
    assert getattr(retrain(), "version", None) == 1
    before = snapshot(project.folder) | snapshot(project.home)
    folder, home = tmp_path / "checkout", tmp_path / "home"
    shutil.copytree(project.folder, folder, symlinks=True)
    shutil.copytree(project.home, home, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EVERGREEN_HOME", str(home))
        assert getattr(score(as_of=datetime(2024, 3, 8)), "predictions", 0) > 0
        monitor()
        p = params.load()
        Shop(registry.open_registry(p.registry), journal.open_journal(p.journal), tmp_path).crown("second", GOOD_MODEL)
        assert rollback(reason="it is slow").serves == 1
    assert snapshot(project.folder) | snapshot(project.home) == before
    champion = registry.open_registry(params.load(project.folder / "params.yaml").registry).find_champion()
    assert champion
    assert champion.number == 1
