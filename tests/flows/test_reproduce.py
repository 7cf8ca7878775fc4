"""A registered version comes out of its lineage byte for byte, or the flow says what differs."""

import pytest

from flows.reproduce import reproduce
from flows.retrain import retrain
from tests.flows.conftest import Project, commit


def test_a_version_comes_out_as_it_was_and_a_changed_source_is_named(project: Project) -> None:
    readme = project.folder / "NOTES.md"
    readme.write_text("an edit that nobody has committed\n")
    done = retrain()
    assert done.version == 1
    commit(project.folder, "later work")
    (project.folder / "tasks" / "features.sql").write_text("SELECT row_id, amount FROM spine")
    commit(project.folder, "other features")
    assert reproduce(1) == []

    orders = project.folder / "source" / "orders.csv"
    orders.write_text(orders.read_text().replace("north", "south"))
    commit(project.folder, "other data")
    # the commit of the version still holds the sources of then: they are part of this made checkout
    assert reproduce(1) == []


def test_a_version_that_does_not_exist_is_refused(project: Project) -> None:
    assert project
    with pytest.raises(ValueError, match="version"):
        reproduce(99)
