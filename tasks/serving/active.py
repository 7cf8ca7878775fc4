"""active: the model versions and tables in use, and how newer ones take their place.

What is newer is loaded and tried beside what serves, and then replaces it by one assignment: a request that has begun
ends with what it began with.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tasks import log, params
from tasks.data import state
from tasks.serving.tables import Tables
from tasks.serving.versions import (
    CHALLENGER,
    COPY_AGAIN,
    POINTER,
    Champion,
    Pointer,
    folder,
    load_and_warm,
    read_pointer,
)


@dataclass
class Active:
    """What answers now: three attributes, each put in place whole. The others are what is remembered between looks."""

    home: Path
    champion: Champion | None = None
    challenger: Champion | None = None
    tables: Tables | None = None
    loaded: dict[str, Champion] = field(default_factory=dict)  # by each pointer, the last: it may wait for a state
    faults: dict[str, str] = field(default_factory=dict)  # of each part, the one that was logged

    def renew(self, p: params.Params) -> Iterator[str]:
        """Put newer ones in place, if there are any; what was done. Whatever is wrong with them, the old ones stay."""
        for name, part in (("champion", self._champion), ("challenger", self._challenger), ("state", self._tables)):
            try:
                change = part(p)
            except Exception as error:  # no copy and no state may end what serves, or keep it from starting
                fault = f"{type(error).__name__}: {error}"
                if self.faults.get(name) != fault:  # the same fault once, not at every look
                    log.warning("the newer %s cannot serve, so what serves serves on: %s", name, fault)
                self.faults[name] = fault
                continue
            self.faults.pop(name, None)
            if change:
                yield change

    def _champion(self, p: params.Params) -> str | None:
        wanted = self._wanted(p, POINTER)
        if wanted is None or wanted.names(self.champion):
            return None
        version = self._version(POINTER, wanted)
        if not self._fits(version) and self.champion and self._fits(self.champion):
            raise ValueError(
                f"the features of version {version.number} must be such as this state can make, but they are not: "
                f"version {self.champion.number} serves on. Publish a state that has them, or roll back."
            )
        self.champion = version
        return f"version {version.number} serves"

    def _challenger(self, p: params.Params) -> str | None:
        """Unlike the champion, it goes when its pointer goes: it may have lost."""
        wanted = self._wanted(p, CHALLENGER) if p.serving.challenger.mode != "none" else None
        before = self.challenger
        if wanted is not None and wanted.names(before):
            return None
        self.challenger = None  # whatever is wrong with the next one, this one is no challenger any more
        if wanted is None:
            return f"version {before.number} is no challenger any more" if before else None
        version = self._version(CHALLENGER, wanted)
        if not self._fits(version):
            raise ValueError(
                f"the features of version {version.number} must be such as this state can make, but they are not: "
                "it is no challenger. Publish a state that has them, or take it away."
            )
        self.challenger = version
        return f"version {version.number} is the challenger"

    def _wanted(self, p: params.Params, pointer: str) -> Pointer | None:
        wanted = read_pointer(self.home, pointer)
        if wanted and wanted.model not in (None, p.registry.model):
            raise ValueError(
                f"the copy must be of registry.model={p.registry.model!r}, but {folder(self.home) / pointer} names "
                f"version {wanted.number} of {wanted.model!r}. Set registry.model back, or promote a new version."
            )
        return wanted

    def _version(self, pointer: str, wanted: Pointer) -> Champion:
        version = self.loaded.get(pointer)
        if version is None or not wanted.names(version):
            version = load_and_warm(self.home, wanted.number)
            if not wanted.names(version):
                raise ValueError(
                    f"{folder(self.home) / str(wanted.number)} must be a copy of run {wanted.run_id}, but it is of "
                    f"{version.card.get('run_id')}. {COPY_AGAIN}"
                )
            self.loaded[pointer] = version
        return version

    def _fits(self, version: Champion) -> bool:
        """Whether the tables can make its features."""
        return self.tables is None or self.tables.prepare(version)

    def _tables(self, p: params.Params) -> str | None:
        newest = state.read_current(self.home)
        if newest is None or (self.tables and self.tables.state == newest):
            return None
        if newest.kind != (kind := state.identify_tables(p)):
            raise ValueError(
                f"the state must be of these params, {kind}, but the state of {newest.as_of} is of {newest.kind}. "
                "Start the server anew with the params.yaml that the flows use, or let them publish by this one."
            )
        tables = Tables.load(p, newest)
        if self.champion:
            tables.prepare(self.champion)
        if self.challenger and not tables.prepare(self.challenger):
            self.challenger = None
        self.tables = tables
        return f"the state of {newest.as_of} is in use"

    def is_ready(self) -> bool:
        """Whether rows can be answered."""
        return self.champion is not None and self.tables is not None

    def event_now(self) -> datetime | None:
        return self.tables.state.event_now() if self.tables else None
