"""promotion.registry on a real MLflow database: versions are made once, and the ledger grows."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks.promotion import changes
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry
from tests.tasks.promotion.conftest import AS_OF, BETTER


def test_there_is_no_champion_before_the_first_promotion(registry: Registry) -> None:
    assert registry.find_champion() is None
    assert registry.list_versions() == []
    with pytest.raises(ValueError, match=r"has no version 7: choose one of \[\]"):
        registry.read_version(7)


def test_an_artifact_arrives_whole_or_is_named(registry: Registry, made: dict[str, Any], tmp_path: Path) -> None:
    version = changes.promote(
        registry, registry.runs.log("r1", **made), decision="d1", verdict=BETTER, as_of=AS_OF, tags={}
    )
    for name in ("model.ubj", "twin.ubj"):
        assert (
            registry.runs.fetch(version.run_id, name, tmp_path / "got").read_bytes()
            == (made["bundle"].model).read_bytes()
        )
    assert sorted(path.name for path in registry.runs.fetch(version.run_id, "reports", tmp_path / "got").iterdir()) == [
        "metrics.json"
    ]
    with pytest.raises(ValueError, match="has no artifact 'poem'"):
        registry.runs.fetch(version.run_id, "poem", tmp_path / "got")
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["model.ubj", "reports", "twin.ubj"]


def test_one_decision_makes_one_version(registry: Registry, made: dict[str, Any]) -> None:
    run_id = registry.runs.log("r1", **made)
    first = registry.register(run_id, decision="d1", description="", tags={})
    assert registry.register(run_id, decision="d1", description="", tags={}) == first
    assert registry.register(run_id, decision="d2", description="", tags={}).number == 2


def test_a_version_made_twice_by_two_machines_at_once_stays_once(registry: Registry, made: dict[str, Any]) -> None:
    run_id = registry.runs.log("r1", **made)
    first = registry.register(run_id, decision="d1", description="", tags={})
    theirs = registry.tracking.client.create_model_version(
        registry.model, first.tags.get("source", "x"), run_id, tags={"evergreen.decision": "d1"}
    )
    assert registry._keep_first("d1", int(theirs.version)) == first
    assert [version.number for version in registry.list_versions()] == [1]


# --- the ledger


def test_a_line_reads_as_it_was_written(registry: Registry) -> None:
    reasons = tuple(f"Reason {i}, at some length: {'é' * 200}." for i in range(60))  # more than a tag holds
    figures = {"figures": {"carrier=UA": [0.1, None]}}
    line = registry.append(Entry("verdict", "d1", AS_OF, champion=3, outcome="HOLD", reasons=reasons, verdict=figures))
    assert registry.read_ledger() == [line]
    assert registry.append(Entry("verdict", "d1", AS_OF, outcome="REJECT")) == line


def test_the_ledger_keeps_its_order_whatever_the_clocks_say(registry: Registry) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    registry.write_entry(Entry("verdict", "d1", AS_OF, outcome="HOLD", made_at=ahead))
    for decision in ("d2", "d3"):
        registry.append(Entry("verdict", decision, AS_OF, outcome="HOLD"))
    assert [line.decision for line in registry.read_ledger()] == ["d1", "d2", "d3"]


def test_a_line_that_was_sent_twice_counts_once(registry: Registry) -> None:
    now = datetime.now(UTC)
    for late in range(2):
        registry.write_entry(Entry("verdict", "d1", AS_OF, outcome="HOLD", made_at=now + timedelta(seconds=late)))
    assert [line.made_at for line in registry.read_ledger()] == [now]


@pytest.mark.parametrize("mark", ["ledger/0", None], ids=["older", "unmarked"])
def test_a_ledger_of_another_format_is_refused_with_the_way_out(registry: Registry, mark: str | None) -> None:
    registry.append(Entry("verdict", "d1", AS_OF, outcome="HOLD"))
    client = registry.tracking.client
    (run,) = client.search_runs([registry.ledger_experiment])
    client.delete_tag(run.info.run_id, "evergreen.format")
    if mark:
        client.set_tag(run.info.run_id, "evergreen.format", mark)
    refusal = rf"is in format {mark or 'unknown'}, but .* reads ledger/1\. .* registry\.experiment"
    for ask in (
        registry.read_ledger,
        partial(changes.finish_open, registry),
        partial(registry.append, Entry("verdict", "d2", AS_OF)),
    ):
        with pytest.raises(ValueError, match=refusal):
            ask()
