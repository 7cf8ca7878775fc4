"""What ingest and features say of the rows that they wrote: manifest.json beside them."""

import json
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tasks.runtime import files

NAME = "manifest.json"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Manifest(_Model):
    """What the two manifests have in common. The file also holds `format`, the mark of FORMAT."""

    FORMAT: ClassVar[files.Format]

    as_of: datetime

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a folder. Raises FileNotFoundError without one, ValueError for one of another format."""
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        cls.FORMAT.check(content.pop("format", None), folder / NAME)
        return cls.model_validate(content)

    def write(self, folder: Path) -> None:
        files.publish_json(folder / NAME, {**self.model_dump(mode="json", by_alias=True), "format": self.FORMAT.mark})


class RawTable(_Model):
    """One table of data/raw: its source, the rows by period, and what became of the rows of its files.

    Rows read = rows + empty + later (not known yet). `lacking`: by file, the columns of the contract that it lacks.
    `unread`: the columns of the files that the contract does not name. `fallback`: what was used because the source
    did not deliver. `newest`: the newest event among the rows.
    """

    address: str
    fingerprint: str
    rows: int
    periods: dict[str, int]
    files: list[str]
    read: int
    empty: int
    later: int
    lacking: dict[str, list[str]]
    unread: list[str] = []
    fallback: str | None = None
    newest: datetime | None = None


class RawManifest(Manifest):
    """What ingest wrote. `limit`: the latest as_of that the rows allow."""

    FORMAT = files.Format("raw manifest", 1)

    limit: datetime
    pii_key_id: str | None
    tables: dict[str, RawTable]


class FeatureColumn(_Model):
    name: str
    kind: Literal["number", "category"]


class Probes(_Model):
    """How much was probed for leaks, and the tables that no probe sees into."""

    moments: int
    rows: int
    unseen: list[str]


class FeaturesManifest(Manifest):
    """What features wrote. A folder that replay cuts to an earlier moment says as_of and columns only."""

    FORMAT = files.Format("features manifest", 1)

    columns: list[FeatureColumn] = []
    rows: int | None = None
    labelled: int | None = None
    unlabelled_share: float | None = None
    begin: str | None = Field(None, alias="from")
    end: str | None = Field(None, alias="to")
    warnings: list[str] = []
    probes: Probes | None = None


def read_limit(raw: Path) -> datetime | None:
    """The latest as_of that the rows of a raw folder allow: what was stored beyond it comes from a bent clock.

    None where there is no manifest, as after `dvc pull features` on another machine.
    """
    return RawManifest.read(raw).limit if (raw / NAME).exists() else None
