"""tasks.runtime.workspaces: a run's own parameters, and how long its folder stays."""

import contextlib
from pathlib import Path

import pytest
import yaml

from tasks import params
from tasks.runtime import overrides, workspaces
from tasks.runtime.workspaces import open_workspace
from tests.tasks.runtime.conftest import FILES, write


def test_an_override_keeps_the_comments_and_every_other_value(checkout: Path) -> None:
    with open_workspace(checkout, overrides={"train.trials": 5, "clock.as_of": "2013-08-01T00:00:00"}) as space:
        text = (space.root / "params.yaml").read_text().replace("'", '"')
    assert text == FILES["params.yaml"].replace("trials: 20", "trials: 5").replace("07-01", "08-01")


@pytest.mark.parametrize("same", ["2013-07-01T00:00:00", "2013-07-01 00:00", "2013-07-01T02:00:00+02:00"])
def test_the_same_moment_in_another_spelling_changes_nothing(checkout: Path, same: str) -> None:
    with open_workspace(checkout, overrides={"clock.as_of": same}) as space:
        assert (space.root / "params.yaml").read_text() == FILES["params.yaml"]


def test_an_unknown_key_is_an_error_that_names_the_nearest_and_leaves_nothing(checkout: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"`train.trails` is no key .* Did you mean `train.trials`"),
        open_workspace(checkout, overrides={"train.trails": 5}),
    ):
        pass
    assert not list((checkout / ".evergreen" / "workspaces").iterdir())


def test_a_key_that_the_file_leaves_at_its_default_is_put_in(checkout: Path) -> None:
    """The last: of a section that is not in the file."""
    path = checkout / "params.yaml"
    path.write_text(FILES["params.yaml"] + "\n# the search\ntune:\n  budget: 1m   # at most\n\n# the end\n")
    overrides.override_params(path, {"tune.trials": 5, "clock.step": "7d", "journal.address": "s3://journal"})
    text = path.read_text()
    assert yaml.safe_load(text) == {
        "clock": {"as_of": "2013-07-01", "step": "7d"},
        "train": {"rate": 0.1, "trials": 20},
        "tune": {"budget": "1m", "trials": 5},
        "journal": {"address": "s3://journal"},
    }
    assert "# the search\ntune:\n  trials: 5\n  budget: 1m   # at most\n" in text
    with pytest.raises(ValueError, match=r"`tune.trails` is no key .* Did you mean `tune.trials`"):
        overrides.override_params(path, {"tune.trails": 5})


def test_a_workspace_goes_after_success(checkout: Path) -> None:
    with open_workspace(checkout) as gone:
        assert gone.root.exists()
    assert not gone.root.exists()


def test_only_the_newest_failures_stay_for_a_look(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(f"{number:06x}" for number in range(9))
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    failed = []
    for number in range(5):
        with contextlib.suppress(RuntimeError), open_workspace(checkout) as space:
            failed.append(space.root)
            raise RuntimeError(f"boom {number}")
    workspaces.remove_abandoned(params.home(checkout), failures=2)
    assert [root.exists() for root in failed] == [False, False, False, True, True]
    assert (failed[-1] / workspaces.KEPT_MARK).read_text() == "RuntimeError: boom 4\n"


def test_a_sweep_takes_what_has_no_owner_and_never_what_has_one(checkout: Path) -> None:
    shared_state = params.home(checkout)
    with open_workspace(checkout) as living:
        dead = shared_state / "workspaces" / "20010101-000000-abcdef"
        half = shared_state / "workspaces" / ".20010101-000000-fedcba"
        for root in (dead, half):
            write(root, {"data/x": "x"})
        assert sorted(workspaces.remove_abandoned(shared_state)) == sorted([dead, half])
        assert living.root.exists()
    assert not list((shared_state / "workspaces").iterdir())
