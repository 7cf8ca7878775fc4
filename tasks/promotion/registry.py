"""registry: the versions of the model, the aliases that say which of them serve, and the ledger, kept in MLflow.

changes.py moves the aliases: it decides nothing, but writes each change into the ledger before it acts.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from tasks import params
from tasks.promotion import ledger
from tasks.promotion.runs import Runs
from tasks.promotion.tags import AS_OF, COMMIT, DATA_TO, DECISION, MODEL_VERSIONS, PREFIX, RECORD, VERDICT
from tasks.promotion.tracking import Tracking, asks_mlflow, connect, find, find_address, load_mlflow
from tasks.promotion.verdict import SAME

CHAMPION, CHALLENGER = "champion", "challenger"
RUNS_NOTE = "One run for each result of the pipeline, with its trials under it."
LEDGER_NOTE = "What was decided: verdicts, promotions, rollbacks, canaries, one small run each, never rewritten."


@dataclass(frozen=True)
class Version:
    """A registered model version, and what it was made of.

    Attributes:
        decision: the id of the decision that registered it.
        record: the hash of what its run records.
    """

    number: int
    run_id: str
    decision: str
    record: str
    as_of: datetime | None
    commit: str
    tags: Mapping[str, str]

    @property
    def learnt_until(self) -> datetime | None:
        """From when on it has seen no row: its as_of, or its newest row's time where as_of was ahead of the data."""
        newest = self.tags.get(DATA_TO)
        if self.as_of is None or newest is None:
            return self.as_of
        return min(self.as_of, datetime.fromisoformat(newest) + timedelta(microseconds=1))


def open_registry(settings: params.Registry, *, uri: str | None = None) -> "Registry":
    """Connect to MLflow; `uri` instead of the environment's address.

    Raises:
        ConnectionError: a server does not answer; within seconds.
        ValueError: the registry was used from here before and is gone.
    """
    experiments = {settings.experiment: RUNS_NOTE, _ledger_name(settings): LEDGER_NOTE}
    return Registry(connect(uri or find_address(), experiments=experiments, model=settings.model), settings)


def _ledger_name(settings: params.Registry) -> str:
    return f"{settings.experiment}-ledger"


@dataclass(frozen=True)
class Registry:
    """One model's runs, versions, aliases and ledger."""

    tracking: Tracking
    settings: params.Registry

    @property
    def model(self) -> str:
        return self.settings.model

    @property
    def runs(self) -> Runs:
        return Runs(self.tracking, self.settings)

    # --- versions

    def find_champion(self) -> Version | None:
        """The version that serves, by its alias; None before the first promotion."""
        return self._find_by_alias(CHAMPION)

    def find_challenger(self) -> Version | None:
        """The version that is tried beside the champion, by its alias."""
        return self._find_by_alias(CHALLENGER)

    @asks_mlflow
    def _find_by_alias(self, alias: str) -> Version | None:
        row = find(self.tracking.client.get_model_version_by_alias, self.model, alias)
        return _to_version(row) if row else None

    @asks_mlflow
    def set_alias(self, alias: str, number: int) -> None:
        self.tracking.client.set_registered_model_alias(self.model, alias, str(number))

    @asks_mlflow
    def remove_alias(self, alias: str) -> None:
        if self._find_by_alias(alias):  # there may be no model yet
            self.tracking.client.delete_registered_model_alias(self.model, alias)

    @asks_mlflow
    def read_version(self, number: int) -> Version:
        """Raises ValueError, with the versions that there are, when there is no such version."""
        if row := find(self.tracking.client.get_model_version, self.model, str(number)):
            return _to_version(row)
        numbers = [version.number for version in self.list_versions()]
        raise ValueError(f"{self.model} has no version {number}: choose one of {numbers}, or promote one first")

    @asks_mlflow
    def list_versions(self, decision: str | None = None) -> list[Version]:
        """All versions, oldest first; or those that a decision registered."""
        query = "" if decision is None else f" AND tags.`{DECISION}` = '{decision}'"
        versions = map(_to_version, self.tracking.search_versions(f"name = '{self.model}'{query}"))
        return sorted(versions, key=lambda version: version.number)

    @asks_mlflow
    def register(self, run_id: str, *, decision: str, description: str, tags: Mapping[str, str]) -> Version:
        """Make a version of a run's model. The same decision gives the same version, however often it is asked."""
        if versions := self.list_versions(decision):
            return versions[0]
        client, model = self.tracking.client, self.runs.find_model(run_id)
        with contextlib.suppress(load_mlflow().exceptions.MlflowException):  # it exists
            client.create_registered_model(self.model, description="Made and promoted by evergreen.")
        lineage = {name: tag for name, tag in self.runs.read_data(run_id).tags.items() if name.startswith(PREFIX)}
        made = client.create_model_version(
            self.model,
            model.artifact_location,
            run_id,
            tags={**lineage, **tags, DECISION: decision},
            description=description,
            model_id=model.model_id,
        )
        number = int(made.version)
        client.set_logged_model_tags(
            model.model_id, {MODEL_VERSIONS: json.dumps([{"name": self.model, "version": str(number)}])}
        )
        return self._keep_first(decision, number)

    def _keep_first(self, decision: str, number: int) -> Version:
        """Two machines may register one decision at once: the lower number stays, on both."""
        first = next(iter(self.list_versions(decision)), None) or self.read_version(number)
        if first.number != number:
            self.tracking.client.delete_model_version(self.model, str(number))
        return first

    @asks_mlflow
    def describe(self, number: int, description: str, version_tags: Mapping[str, str]) -> None:
        """Change what a person reads beside a version."""
        client = self.tracking.client
        client.update_model_version(self.model, str(number), description=description)
        for name, tag in version_tags.items():
            client.set_model_version_tag(self.model, str(number), name, tag)

    def find_predecessor(self, version: Version) -> Version | None:
        """The version that served last before this one first did, of those that were not rolled back themselves."""
        versions = {other.number: other for other in self.list_versions()}
        number = ledger.find_predecessor(self.read_ledger(), version.number, versions.keys())
        return None if number is None else versions[number]

    def find_barred(self, record: str, entries: Sequence[ledger.Entry]) -> int | None:
        """The barred version of a record, if there is one: the same recipe and data give the same model."""
        if not (barred := ledger.find_barred(entries)):
            return None
        numbers = (version.number for version in self.list_versions() if version.record == record)
        return next((number for number in numbers if number in barred), None)

    # --- the ledger

    @property
    def ledger_experiment(self) -> str:
        """The ledger's experiment, by its id."""
        return self.tracking.experiments[_ledger_name(self.settings)]

    @asks_mlflow
    def read_ledger(self) -> list[ledger.Entry]:
        """All entries, oldest first."""
        runs = self.tracking.search_runs(self.ledger_experiment)
        entries = [(ledger.from_tags(run.data.tags, model=self.model), run.info.run_id) for run in runs]
        entries.sort(key=lambda pair: (pair[0].made_at, pair[1]))
        return ledger.drop_repeated(entry for entry, _ in entries)

    def append(self, entry: ledger.Entry) -> ledger.Entry:
        """Write one entry. A mark that its decision has already is left as it was, and returned."""
        with self.transaction() as transaction:
            return transaction.append(entry)

    @contextlib.contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """Hold the registry's lock, with the ledger as it is now."""
        with self.tracking.lock:
            yield Transaction(self, self.read_ledger())

    @asks_mlflow
    def write_entry(self, entry: ledger.Entry) -> None:
        """Write an entry as it is. One request makes it, whole; what comes after is for the eye."""
        assert entry.made_at
        name = f"{entry.mark} · {entry.decision[:12]}"
        run_id = self.tracking.create_run(self.ledger_experiment, name, ledger.to_tags(entry), start=entry.made_at)
        self.tracking.client.set_terminated(run_id, "FINISHED")
        is_same = SAME in entry.verdict.get("figures", {})  # the run keeps the verdict by which it came to serve
        if entry.run and entry.outcome and not is_same:
            self.tracking.client.set_tag(entry.run, VERDICT, entry.outcome)

    @asks_mlflow
    def end_entries(self) -> None:
        """End the entries' runs that a killed process left running: they are whole."""
        for run in self.tracking.search_runs(self.ledger_experiment, "attributes.status = 'RUNNING'"):
            self.tracking.client.set_terminated(run.info.run_id, "FINISHED")

    def find_canary(self) -> ledger.Entry | None:
        """The entry that began the canary that is on, if its version has the alias."""
        if (version := self.find_challenger()) is None:
            return None
        begun = ledger.find_canary(self.read_ledger())
        return begun if begun and begun.version == version.number else None


@dataclass(frozen=True)
class Transaction:
    """The registry while its lock is held: the ledger is read once, and grows with each entry that is appended."""

    registry: Registry
    entries: list[ledger.Entry]

    def append(self, entry: ledger.Entry) -> ledger.Entry:
        """Write one entry. A mark that its decision has already is left as it was, and returned."""
        if written := ledger.find_entry(self.entries, entry.mark, entry.decision):
            return written
        entry = replace(entry, made_at=ledger.next_moment(self.entries))
        self.registry.write_entry(entry)
        self.entries.append(entry)
        return entry


def _to_version(row: Any) -> Version:
    version_tags = dict(row.tags)
    as_of = version_tags.get(AS_OF)
    return Version(
        number=int(row.version),
        run_id=str(row.run_id),
        decision=version_tags.get(DECISION, ""),
        record=version_tags.get(RECORD, ""),
        as_of=datetime.fromisoformat(as_of) if as_of else None,
        commit=version_tags.get(COMMIT, "unknown"),
        tags=version_tags,
    )
