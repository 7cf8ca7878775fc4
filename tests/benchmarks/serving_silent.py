"""Our API with a journal that keeps nothing: what the journal costs is what this is faster by.

python -m tests.benchmarks.serving_silent --port 8081
"""

from typing import Any

from tasks.serving.__main__ import main
from tasks.serving.journal_writer import JournalWriter


async def keep_nothing(*_: Any, **__: Any) -> None:
    """In the place of Book.write."""


if __name__ == "__main__":
    assert callable(JournalWriter.write)
    JournalWriter.write = keep_nothing  # type: ignore[method-assign]
    main()
