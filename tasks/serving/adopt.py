"""adopt: bring the journal of this home to the store of a team.

    python -m tasks.serving.adopt

For a home that worked alone before EVERGREEN_STORE was set. Stop first what still writes to it. The home's own journal
is not deleted, but renamed. What is killed can be run again: a row counts once.
"""

from contextlib import closing
from pathlib import Path

from tasks import params
from tasks.runtime import store
from tasks.serving import schema
from tasks.serving.journal import open_journal, open_local

ADOPTED = "journal-adopted"  # what the home's journal is called then
BATCH = 20_000  # rows at once


def adopt(home: Path, settings: params.Journal) -> int:
    """Append the rows of a home's journal to the team's. Returns how many there were.

    Raises:
        ValueError: There is no store, no journal, or one that was adopted before.
    """
    if store.find_store() is None:
        raise ValueError(f"there is no store to bring the journal to: set {store.VARIABLE}.")
    own, adopted = home / "journal", home / ADOPTED
    if not own.exists():
        raise ValueError(f"{own} is not there, so there is nothing to bring.")
    if adopted.exists():
        raise ValueError(f"{adopted} is there already: rename it.")
    count = 0
    with closing(open_local(params.Journal(), home)) as local, closing(open_journal(settings, home=home)) as shared:
        for kind in schema.KINDS:
            rows = local.read(kind, shadows=True)
            for first in range(0, rows.num_rows, BATCH):
                shared.append(kind, rows.slice(first, BATCH))
            count += rows.num_rows
        shared.compact()
    own.rename(adopted)
    return count


def main() -> None:
    home = params.home()
    count = adopt(home, params.load().journal)
    print(f"{count:,} rows are in the team's journal now; the home's own is {home / ADOPTED}")


if __name__ == "__main__":
    main()
