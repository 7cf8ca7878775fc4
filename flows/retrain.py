"""retrain: run the DVC pipeline at as_of, judge the candidate, promote it when the gate says so.

    python -m flows.retrain --as-of 2013-07-01 --trials 12

Works with a Prefect server (PREFECT_API_URL) and without one. The graph is dvc.yaml's: each of its stages is a task run
of its name. The run has a workspace of its own; the checkout is never edited.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows import approval, cli
from flows.answers import (
    Asked,
    Check,
    TooEarlyError,
    answer_fault,
    back_off,
    finish_open,
    is_answered,
    is_too_early,
    tell,
)
from flows.forms import Json, hide_from_form
from flows.runs import retried
from flows.skew import compare_features
from tasks import params
from tasks.data import feasibility, state
from tasks.data.manifest import FeaturesManifest, RawManifest
from tasks.params import Params
from tasks.promotion import changes, judge, record, tracking
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, Version, open_registry
from tasks.promotion.tags import FLOW_RUN, GATE_METRIC, PII_KEY_ID
from tasks.promotion.verdict import Verdict, render_verdict
from tasks.runtime import clock, locks, pipeline, workspaces
from tasks.runtime.pipeline import StageFailed, StageRun
from tasks.runtime.workspaces import Workspace

LONGEST = timedelta(hours=6)  # of a retrain, for those that wait for it
FIRST = "ingest"  # of the stages: it knows what the sources have


@dataclass(frozen=True)
class Retrained:
    """The result of a retrain. `cpu` counts the seconds of CPU of the stages that ran; restored ones cost nothing."""

    as_of: str
    record: str
    verdict: Verdict
    run_id: str
    version: int | None
    stages: tuple[StageRun, ...]
    reports: Mapping[str, Any]

    @property
    def cpu(self) -> float:
        return sum(stage.cpu for stage in self.stages)


@hide_from_form("decision", "attempt")
@flow(name="retrain", flow_run_name="retrain {reason}")
def retrain(
    *,
    as_of: datetime | None = None,
    trials: Annotated[int | None, Field(ge=1)] = None,
    budget: timedelta | None = None,
    reason: str = "by hand",  # noqa: ARG001 (flow_run_name)
    decision: str | None = None,
    settings: Json = None,
    attempt: Annotated[int, Field(ge=0)] = 0,
    force: bool = False,
) -> Retrained | None:
    """Run every stage at as_of, judge the candidate against the champion, and promote it if the gate says PROMOTE.

    None where the ledger has answered the decision already, since whoever asked twice gets one retrain, and where the
    gate would look at no candidate yet.

    Args:
        as_of: Event time "now", in UTC, such as 2013-07-01T00:00:00Z. Empty: the clock of params.yaml.
        trials: The most trials of the search. Empty: tune.trials.
        budget: The longest that the search may take, such as PT10M here and 10m in a terminal. Empty: tune.budget.
        reason: Why; it names the run.
        decision: The id of the decision that this run answers.
        settings: Other values of params.yaml for this run, such as {"train.refit": false}.
        attempt: How often this has crashed and been run again.
        force: On: take an as_of beyond the data, or ahead of the clock, as it is.
    """
    p = params.load()
    moment = as_of or clock.now(p.clock)
    asked = Asked(decision, params.to_utc(moment) if moment else None)
    overrides = _overrides(asked.as_of, trials, budget, settings)
    try:
        with take_turn(), workspaces.open_workspace(Path.cwd(), overrides=overrides) as space:
            done = _retrained(space, decision, attempt, force=force)
    except Exception as error:
        answer_fault(p, asked, error)
        raise
    if done:
        publish(done, p)
    return done


def _retrained(space: Workspace, decision: str | None, attempt: int, *, force: bool) -> Retrained | None:
    p = params.load(space.root / "params.yaml")
    asked = Asked(decision, p.clock.as_of)
    if decision and is_answered(p, decision):
        return None
    _refuse_further_attempt(p, attempt)
    if asked.as_of and is_too_early(p, asked, asked.as_of):
        return None
    tracking.preload()
    if asked.as_of:
        clock.refuse_ahead(params.load().clock, asked.as_of, force=force)
    try:
        stages = run_stages(space, force=force, check=back_off(p, asked))
    except TooEarlyError:
        return None
    registry = connect_registry(p)
    run = record_run(p, space, registry)
    compare_features(p, space.root, registry, return_state=True)  # whatever comes of it, the retrain goes on
    verdict = judge_candidate(p, space, registry, run)
    tell_who_approves(p, verdict, decision)
    # While a person decides, other retrains wait: they would be judged against a champion that is about to go.
    verdict = approval.ask_approval(verdict, p.gate)
    verdict, version = carry_out(p, registry, run, verdict, decision=decision or f"retrain-{flow_run.id}")
    state.publish(p, space.root)
    return Retrained(run.as_of, run.record, verdict, run.run_id, version, stages, read_reports(p, space.root))


@contextmanager
def take_turn() -> Iterator[None]:
    """One retrain at a time in this home, by a lock that ends with its process.

    Not by a limit of Prefect's: a server that is killed may count a place as taken for ever, and a run that pauses for
    an approval loses its place.
    """
    p, say = params.load(), get_run_logger().info
    waits = LONGEST + (p.gate.approval_within if p.gate.approval == "required" else timedelta(0))
    with locks.take_turn(params.home(), say=say, timeout=waits.total_seconds()):
        yield


def _refuse_further_attempt(p: Params, attempt: int) -> None:
    """The automations that run a crashed retrain again do not count its attempts: this error ends them."""
    if attempt > p.policy.attempts:
        raise ValueError(
            f"`attempt <= policy.attempts` must hold, but this retrain has crashed {attempt} times and policy.attempts "
            f"is {p.policy.attempts}. See in the logs of those runs why; then start it by hand, or raise "
            "policy.attempts."
        )


@retried("open the registry")
def connect_registry(p: Params) -> Registry:
    return open_registry(p.registry)


@retried("tell who approves")
def tell_who_approves(p: Params, verdict: Verdict, decision: str | None) -> None:
    if p.gate.approval == "required" and verdict.promotes:
        why = f"{' '.join(verdict.reasons)} The run's page in the Prefect UI asks whether to promote it."
        cause = f"approve {decision or flow_run.id}"
        tell(p, f"evergreen: a candidate of {p.registry.model} waits for approval", why, cause=cause)


def _overrides(
    as_of: datetime | None, trials: int | None, budget: timedelta | None, settings: dict[str, Any] | None
) -> dict[str, Any]:
    """This run's values for params.yaml."""
    asked = {
        "clock.as_of": as_of and params.to_utc(as_of).isoformat(),
        "tune.trials": trials,
        "tune.budget": budget and params.spell(budget),
    }
    return {name: value for name, value in asked.items() if value is not None} | (settings or {})


def run_stages(
    space: Workspace,
    *,
    last: str | None = None,
    force: bool = False,
    check: Check | None = None,
) -> tuple[StageRun, ...]:
    """The stages of dvc.yaml, all or up to `last`, each as a task run of its name that waits for those it needs.
    `check` is called with what ingest has found, its as_of and the end of the data, before the stages that cost.

    Raises ValueError, before anything is spent, for an as_of beyond what ingest has brought, unless it is forced.
    """
    _refuse_faulty_sql(space)
    futures: dict[str, Any] = {}
    for stage in pipeline.list_stages(space.root):
        needs = [futures[name] for name in stage.upstream]
        futures[stage.name] = stage_task(stage.name).submit(space, stage.name, wait_for=needs)
        futures[stage.name].wait()
        if stage.name == FIRST and futures[stage.name].state.is_completed():
            as_of, limit = _read_times(space)
            clock.refuse_beyond(limit, as_of, force=force)
            if check:
                check(as_of, limit)
            if last is None:
                _refuse_misfit(space)
        if stage.name == last:
            break
    return tuple(future.result() for future in futures.values())


def _refuse_faulty_sql(space: Workspace) -> None:
    """Check features.sql before the sources are read."""
    try:
        feasibility.dry_run(params.load(space.root / "params.yaml"), space.root)
    except ValueError as error:
        raise StageFailed(FIRST, str(error)) from None


def _read_times(space: Workspace) -> tuple[datetime, datetime | None]:
    """The as_of that ingest has found, and the end of the data."""
    raw = space.root / params.load(space.root / "params.yaml").paths.raw
    manifest = RawManifest.read(raw)
    return manifest.as_of, manifest.limit


def _refuse_misfit(space: Workspace) -> None:
    """Fail early if there are too few rows for a verdict; warn of lesser problems."""
    p = params.load(space.root / "params.yaml")
    problems = feasibility.check_workspace(p, space.root)
    for problem in problems:
        get_run_logger().warning("%s", problem.message)
    if reason := feasibility.explain_refusal(problems):
        raise StageFailed(FIRST, reason)


def stage_task(name: str) -> Any:
    """The Prefect task of a stage. DVC decides what is cached, so Prefect does not."""
    return task(name=name, task_run_name=name, cache_policy=NO_CACHE)(run_stage)


def run_stage(space: Workspace, name: str, *, force: bool = False) -> StageRun:
    """One stage; what its program says goes to the log as it says it."""
    say = get_run_logger().info
    done = pipeline.run_stage(space.root, name, env=_lineage(space), on_line=say, force=force)
    say("%s: %s, %.1f s, %.1f s of CPU", name, done.status, done.wall, done.cpu)
    return done


def _lineage(space: Workspace) -> dict[str, str]:
    """The environment of the stages: what `record` cannot find out inside a workspace."""
    diff = {"EVERGREEN_DIFF": str(space.diff)} if space.diff else {}
    return {**space.env, "EVERGREEN_COMMIT": space.commit, **diff, "EVERGREEN_FLOW_RUN": str(flow_run.id or "")}


@dataclass(frozen=True)
class Recorded:
    record: str
    run_id: str
    as_of: str


@retried("on record")
def record_run(p: Params, space: Workspace, registry: Registry) -> Recorded:
    """Find the MLflow run of what the stages made, or log it if their results were restored from elsewhere."""
    key = record.record(p, space.root, environment=_lineage(space))
    run_id = registry.runs.find(key)
    assert run_id is not None  # record has just seen to it
    as_of = FeaturesManifest.read(space.root / p.paths.features).as_of
    return Recorded(key, run_id, as_of.isoformat())


@retried("gate")
def judge_candidate(p: Params, space: Workspace, registry: Registry, run: Recorded) -> Verdict:
    """Finish a promotion or rollback that was cut off, then ask the gate."""
    finish_open(registry)
    champion = registry.find_champion()
    _refuse_other_key(space.root / p.paths.raw, p, champion)
    verdict = judge.judge_candidate(p, space.root, run.record, registry=registry, champion=champion)
    get_run_logger().info("%s: %s", verdict.outcome, " ".join(verdict.reasons))
    return verdict


def _refuse_other_key(raw: Path, p: Params, champion: Version | None) -> None:
    """Another key gives every person another pseudonym: a change must be declared in params.yaml."""
    now = RawManifest.read(raw).pii_key_id
    then = champion.tags.get(PII_KEY_ID) if champion else None
    if then and now != then and p.ingest.pii_key_id != now:
        raise ValueError(
            f"the champion's data was pseudonymised with the key {then}, this run's with {now}. Set EVERGREEN_PII_KEY "
            f"to the old key, or set ingest.pii_key_id: {now} in params.yaml to say that the change is meant."
        )


@retried("promote")
def carry_out(
    p: Params, registry: Registry, run: Recorded, verdict: Verdict, *, decision: str
) -> tuple[Verdict, int | None]:
    """Write the verdict to the ledger and, on PROMOTE, move the alias. Returns the verdict and the new version."""
    as_of = datetime.fromisoformat(run.as_of)
    with registry.lock:  # no rollback may come between the question who serves and the answer
        serving = registry.find_champion()
        verdict = judge.hold_if_another_serves(verdict, serving)
        if verdict.promotes:
            tags = {FLOW_RUN: str(flow_run.id or ""), GATE_METRIC: p.gate.metric}
            done = changes.promote(
                registry, run.run_id, decision=decision, verdict=verdict.to_dict(), as_of=as_of, tags=tags
            )
            return verdict, done.number
        registry.append(
            Entry(
                "verdict",
                decision,
                as_of,
                run=run.run_id,
                champion=verdict.figures.get("champion_version", serving.number if serving else None),
                outcome=verdict.outcome,
                reasons=verdict.reasons,
                counts_as_look=verdict.counts_as_look,
                verdict=verdict.to_dict(),
            )
        )
    return verdict, None


def read_reports(p: Params, root: Path) -> dict[str, Any]:
    """Read the stages' reports, since the workspace is removed when the run ends."""
    files = {"quality": p.paths.reports / "quality.json", "tuned": p.paths.models / "tuned.json"}
    files |= {name: p.paths.reports / f"{name}.json" for name in ("metrics", "leaderboard", "slices")}
    return {name: json.loads((root / path).read_text()) for name, path in files.items()}


@retried("publish")
def publish(done: Retrained, p: Params) -> None:
    """The artifacts that the Prefect UI shows beside the run."""
    create_markdown_artifact(render_verdict(done.verdict), key="verdict", description=f"as of {done.as_of}")
    create_table_artifact(done.reports["leaderboard"], key="metrics", description="on the holdout, the best first")
    steps = [{"stage": stage.name, "status": stage.status, "seconds": round(stage.wall, 1)} for stage in done.stages]
    create_table_artifact(steps, key="stages", description="what ran, and what was taken from the cache")
    link = open_registry(p.registry).tracking.find_link(done.run_id)
    create_link_artifact(link, key="mlflow-run", link_text="the MLflow run")


def describe(done: Retrained | None) -> str:
    """The retrain as a person reads it."""
    return render_verdict(done.verdict) if done else "Nothing was trained: the log says why."


if __name__ == "__main__":
    cli.run("retrain")
