"""What ingest and features say of the rows that they wrote: manifest.json beside them."""

import json
from datetime import datetime
from pathlib import Path


def read_limit(raw: Path) -> datetime | None:
    """The latest as_of that the rows of a raw folder allow: what was stored beyond it comes from a bent clock. None
    where ingest has not told it."""
    path = raw / "manifest.json"
    told = json.loads(path.read_text()).get("limit") if path.exists() else None
    return datetime.fromisoformat(told) if told else None
