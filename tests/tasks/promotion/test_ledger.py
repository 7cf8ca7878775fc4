"""promotion.ledger: what the entries say, without MLflow."""

from datetime import datetime, timedelta

from tasks.promotion import ledger
from tasks.promotion.ledger import Entry

AS_OF = datetime(2013, 7, 1)


def verdict(decision: str, day: int, *, champion: int | None = None, outcome: str = "HOLD", look: bool = True) -> Entry:
    as_of = AS_OF + timedelta(days=day)
    return Entry("verdict", decision, as_of, champion=champion, outcome=outcome, counts_as_look=look)


def looks(entries: list[Entry], champion: int | None) -> tuple[int, datetime | None]:
    """How many, and when the last was."""
    return ledger.count_looks(entries, champion), ledger.find_last_look(entries, champion)


def test_looks_count_since_the_version_first_became_champion() -> None:
    entries: list[Entry] = []
    assert looks(entries, None) == (0, None)
    entries += [verdict("a", 1, champion=1), Entry("alias moved", "b", AS_OF, version=1)]
    assert looks(entries, 1) == (0, None)
    entries += [verdict("c", 2, champion=1, outcome="REJECT"), verdict("d", 3, champion=1)]
    entries.append(verdict("e", 4, champion=1, look=False))  # during a back-off nobody looked
    assert looks(entries, 1) == (2, AS_OF + timedelta(days=3))
    assert ledger.count_looks(entries, 2) == 0
    entries.append(Entry("rolled back", "f", AS_OF, version=1))
    assert ledger.count_looks(entries, 1) == 2


def test_looks_at_first_models_count_their_refusals_since_there_last_was_a_champion() -> None:
    entries = [verdict("a", 1), verdict("b", 2), verdict("c", 3, look=False)]
    assert looks(entries, None) == (2, AS_OF + timedelta(days=2))
    entries += [Entry("alias moved", "d", AS_OF, version=1), verdict("e", 4, champion=1)]
    assert looks(entries, None) == (0, None)
    entries.append(verdict("f", 5))  # somebody took the alias off
    assert looks(entries, None) == (1, AS_OF + timedelta(days=5))
    assert ledger.count_looks(entries, 1) == 1
