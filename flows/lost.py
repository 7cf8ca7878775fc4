"""lost: runs whose process is gone and that nobody has ended, and crashed retrains that nobody has run again.

    python -m flows.lost    # beside Prefect's server, where no worker is `flows.worker`

The server's automations (flows/deploy.py) answer both, as long as the server lives. But they count events, and the
server has the events that are on their way in memory only: one that is killed loses them, one whose database is away
drops them, and one that has been started since holds back the next event of each run for a quarter of an hour, since it
has not seen the event before it. So each worker (flows/worker.py) also looks at the server's tables, which lose
nothing, and does what the automations have left undone. An automation that somebody has turned off is left undone here
too. However many look, a run is run again once.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NoReturn
from uuid import UUID

from prefect import get_client, states
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters, objects
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra import HEARTBEAT_S

BEAT = "prefect.flow-run.heartbeat"
SILENCE = timedelta(seconds=5 * HEARTBEAT_S)  # so long that a server may be away for a minute, and nobody is missed
LEFT = "left behind by a worker that is gone"
END_SILENT = "a silent run has crashed"  # the automation
RETRAIN, RETRAIN_AGAIN = "retrain", "retrain-again"  # the deployments; the flow is `retrain`
TAG = "evergreen"  # of all deployments
BEGUN = ("PENDING", "RUNNING", "CANCELLING", "PAUSED")
EVERY_S = 20.0  # from one look to the next
GRACE = timedelta(seconds=HEARTBEAT_S)  # for the automations, which are faster where they work
RETURN_S = 2.0 * HEARTBEAT_S  # after the server was away, until those that live have been heard again
DAY = timedelta(days=1)
PAGE = 200  # runs in one answer, the most that a server gives
OF_RETRAIN = filters.FlowFilter(name=filters.FlowFilterName(any_=[RETRAIN]))


# --- what each worker does -----------------------------------------------------------------------------------------


def watch() -> NoReturn:
    """Look for what was lost, for ever. A server that is away is asked again at the next look."""
    search = Search()
    while True:
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
                while True:
                    time.sleep(EVERY_S)
                    for line in search.look(client, datetime.now(UTC)):
                        print(line, flush=True)
        except Exception as error:
            if search.since:
                print(f"no look for lost runs now: {type(error).__name__}: {error}", flush=True)
            search.since = None


@dataclass
class Search:
    """What one looker remembers.

    Attributes:
        since: When the server began to answer, of time.monotonic. None: it does not.
        settled: Crashed retrains that have been run again.
    """

    since: float | None = None
    settled: set[UUID] = field(default_factory=set)

    def look(self, client: SyncPrefectClient, now: datetime) -> Iterator[str]:
        """Take up what is lost. Yields a line for each. Raises what Prefect's client raises if the server is away."""
        begun = list_begun(client)
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since >= RETURN_S:
            for run in begun:
                if is_silent(run, client, now) and is_on(END_SILENT, client):
                    end(run, client)
                    yield f"{run.name} ({run.id}): no heartbeat for {SILENCE + GRACE}, so it has crashed"
        for run in list_crashed(client, now):
            if run.id in self.settled:
                continue
            if not is_run_again(run, client):
                if not may_run_again(run, client):
                    continue
                run_again(run, client)
                yield f"{run.name} ({run.id}): it crashed, and runs again"
            self.settled.add(run.id)


# --- silent runs ---------------------------------------------------------------------------------------------------


def list_begun(client: SyncPrefectClient) -> list[objects.FlowRun]:
    """Runs of the deployments that should have a process. A suspended one has none."""
    wanted = filters.FlowRunFilter(state=_in_states(*BEGUN), tags=filters.FlowRunFilterTags(all_=[TAG]))
    return [run for run in client.read_flow_runs(flow_run_filter=wanted) if run.state_name != "Suspended"]


def is_silent(run: objects.FlowRun, client: SyncPrefectClient, now: datetime) -> bool:
    """Whether it has given no sign of life for longer than the automation that ends silent runs waits."""
    limit = now - SILENCE - GRACE
    if run.state is None or run.state.timestamp > limit:
        return False
    beats = EventFilter(
        event=EventNameFilter(name=[BEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=limit),
    )
    return not client.read_events(beats, limit=1).events


def end(run: objects.FlowRun, client: SyncPrefectClient) -> None:
    """Mark a run without a process as crashed. A retrain is run again before: a kill between them loses none."""
    now = client.read_flow_run(run.id)
    if now.state and now.state.is_final():
        return
    if is_retrain(run, client) and may_run_again(run, client):
        run_again(run, client)
    client.set_flow_run_state(run.id, states.Crashed(message=LEFT), force=True)


def end_all(pool: str, client: SyncPrefectClient) -> list[objects.FlowRun]:
    """End all runs that have begun in a pool which has no worker yet. Returns them."""
    left = client.read_flow_runs(
        work_pool_filter=filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool])),
        flow_run_filter=filters.FlowRunFilter(state=_in_states(*BEGUN)),
    )
    for run in left:
        end(run, client)
    return left


# --- crashed retrains ----------------------------------------------------------------------------------------------


def list_crashed(client: SyncPrefectClient, now: datetime) -> list[objects.FlowRun]:
    """Retrains of the deployments that crashed within a day, but not just now."""
    wanted = filters.FlowRunFilter(
        state=_in_states("CRASHED"),
        end_time=filters.FlowRunFilterEndTime(after_=now - DAY, before_=now - GRACE),
        tags=filters.FlowRunFilterTags(all_=[TAG]),
    )
    return client.read_flow_runs(flow_filter=OF_RETRAIN, flow_run_filter=wanted)


def is_run_again(run: objects.FlowRun, client: SyncPrefectClient) -> bool:
    """Whether somebody has asked for a later attempt."""
    later = filters.FlowRunFilter(
        expected_start_time=filters.FlowRunFilterExpectedStartTime(after_=run.expected_start_time)
    )
    offset = 0
    while page := client.read_flow_runs(flow_filter=OF_RETRAIN, flow_run_filter=later, limit=PAGE, offset=offset):
        attempts = [count_attempts(other) for other in page if name_decision(other) == name_decision(run)]
        if max(attempts, default=0) > count_attempts(run):
            return True
        offset += len(page)
    return False


def may_run_again(run: objects.FlowRun, client: SyncPrefectClient) -> bool:
    """Whether policy.attempts leaves it one more, and nobody has turned that automation off."""
    return is_on(name_rerun(count_attempts(run) + 1), client)


def run_again(run: objects.FlowRun, client: SyncPrefectClient) -> None:
    """What the automation does; under a key of the run's, so that there is one however often it is asked for."""
    attempt = {"attempt": count_attempts(run) + 1, "decision": name_decision(run)}
    client.create_flow_run_from_deployment(
        client.read_deployment_by_name(f"{RETRAIN}/{RETRAIN_AGAIN}").id,
        parameters={**run.parameters, **attempt},
        idempotency_key=f"{run.id} again",
    )


def is_retrain(run: objects.FlowRun, client: SyncPrefectClient) -> bool:
    return run.deployment_id is not None and client.read_flow(run.flow_id).name == RETRAIN


def count_attempts(run: objects.FlowRun) -> int:
    """How often the retrain had crashed before this run of it."""
    return int(run.parameters.get("attempt") or 0)


def name_decision(run: objects.FlowRun) -> str:
    """A run by hand has no decision, and promotes under its own id: a later attempt promotes under the same."""
    return str(run.parameters.get("decision") or f"retrain-{run.id}")


def name_rerun(number: int) -> str:
    """The automation that starts this attempt."""
    return f"a crashed retrain runs again ({number})"


def is_on(automation: str, client: SyncPrefectClient) -> bool:
    return any(one.enabled for one in client.read_automations_by_name(automation))


def _in_states(*names: str) -> filters.FlowRunFilterState:
    types = [objects.StateType[name] for name in names]
    return filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=types))


if __name__ == "__main__":
    watch()
