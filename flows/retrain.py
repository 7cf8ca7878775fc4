"""retrain: run the DVC pipeline at as_of, judge the candidate, promote it when the gate says so.

    python -m flows.retrain --as-of 2013-07-01 --trials 12

Works with a Prefect server (PREFECT_API_URL) and without one. The graph is dvc.yaml's: each of its stages is a task run
of its name. The run has a workspace of its own; the checkout is never edited.
"""

import base64
import json
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from prefect import artifacts, flow, get_run_logger, runtime
from pydantic import Field

from flows import answers, cli, forms, people
from flows.runs import pass_on_logs, retried
from flows.stages import list_changed, list_lineage, push_outputs, run_stages
from tasks import params
from tasks.data import manifest, state
from tasks.monitoring import decisions, obstacles, skew
from tasks.params import RetrainKind
from tasks.promotion import card, changes, datacard, judge, ledger, outcome, recipe, record, same, tags
from tasks.promotion.page import render_verdict
from tasks.promotion.registry import Registry, Version, open_registry
from tasks.promotion.verdict import Verdict
from tasks.runtime import clock, cost, locks, pipeline, workspaces
from tasks.serving.journal import open_journal

LONGEST = timedelta(hours=6)  # of a retrain, for those that wait for it


@dataclass(frozen=True)
class Retrained:
    """The result of a retrain.

    Attributes:
        version: None unless it was promoted.
        links: None where nobody has asked MLflow for them yet.
    """

    as_of: str
    record: str
    verdict: Verdict
    run_id: str
    version: int | None
    stages: tuple[pipeline.StageRun, ...]
    reports: Mapping[str, Any]
    links: outcome.Links | None = None


@forms.hide_from_form("decision", "attempt")
@flow(name="retrain", flow_run_name="retrain {reason}")
def retrain(
    *,
    as_of: datetime | None = None,
    kind: RetrainKind = "search",
    trials: Annotated[int | None, Field(ge=1)] = None,
    budget: timedelta | None = None,
    reason: str = "by hand",  # noqa: ARG001 (flow_run_name)
    decision: str | None = None,
    settings: forms.Json = None,
    attempt: Annotated[int, Field(ge=0)] = 0,
    force: bool = False,
) -> Retrained | None:
    """Run every stage at as_of, judge the candidate against the champion, and promote it if the gate says PROMOTE.

    None where the ledger has answered the decision already, since whoever asked twice gets one retrain, and where the
    gate would look at no candidate yet.

    Args:
        as_of: Event time "now", in UTC, such as 2013-07-01T00:00:00Z. Empty: the clock of params.yaml.
        kind: search: a new recipe. refresh: the champion's recipe on newer rows, for a fraction of the cost. contender:
            the recipe of a search that is not decided yet, on newer rows; its race goes on.
        trials: The most trials of the search. Empty: tune.trials.
        budget: The longest that the search may take, such as PT10M here and 10m in a terminal. Empty: tune.budget.
        reason: Why; it names the run.
        decision: The id of the decision that this run answers.
        settings: Other values of params.yaml for this run, such as {"train.refit": false}.
        attempt: How often this has crashed and been run again.
        force: On: take an as_of beyond the data, or ahead of the clock, as it is, and spend more than policy.money.
    """
    p = params.load()
    moment = as_of or clock.now(p.clock)
    moment = params.to_utc(moment) if moment else None
    given = {"clock.as_of": moment, "tune.trials": trials, "tune.budget": budget and params.spell(budget)}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None} | (settings or {})
    # One at a time in this home, by a lock that ends with its process. Not by a limit of Prefect's: a server that is
    # killed may count a place as taken for ever, and a run that pauses for an approval loses its place.
    waits = LONGEST + (p.gate.approval_within if p.gate.approval == "required" else timedelta(0))
    turn, root = locks.take_turn(params.home(), say=get_run_logger().info, timeout=waits.total_seconds()), None
    try:
        # What is asked of the registry in this turn must hold until the verdict.
        with turn, same.start() as closer:
            overrides |= choose_recipe(p, kind) | limit_cost(p, kind, moment, force=force)
            with workspaces.open_workspace(Path.cwd(), overrides=overrides) as space:
                root = space.root  # after an error it is kept
                done = make_and_judge(space, answers.Asked(decision, kind, root), attempt, closer, force=force)
    except Exception as error:
        if decision:
            answers.answer_fault(p, answers.Asked(decision, kind, root), moment, error)
        raise
    if done:
        publish(done, p)
    return done


def make_and_judge(
    space: workspaces.Workspace, asked: answers.Asked, attempt: int, closer: same.Closer, *, force: bool
) -> Retrained | None:
    """The retrain in its workspace. None where no candidate is wanted."""
    p, decision = params.load(space.root / "params.yaml"), asked.decision
    if decision and answers.is_answered(p, decision):
        return None
    _refuse_further_attempt(p, attempt)
    if p.clock.as_of:
        clock.refuse_ahead(params.load().clock, p.clock.as_of, force=force)
        if decision and answers.is_too_early(p, asked, p.clock.as_of):
            return None

    def is_too_early(moment: datetime, limit: datetime | None) -> bool:
        closer.stop()  # there is something to make, so there is something to judge
        return answers.is_too_early(p, asked, moment, limit)

    stages = run_stages(space, force=force, stops=is_too_early)
    if stages is None:
        return None
    closed = None if list_changed(stages) else close_same(p, space, asked, closer)
    closer.stop()
    if closed:
        reports, verdict = read_reports(p, space.root), closed.verdict
        return Retrained(closed.as_of, closed.record, verdict, closed.run_id, None, stages, reports, closed.links)
    registry = retried("open the registry")(open_registry)(p.registry)
    run = record_run(p, space, registry)
    push_outputs(space)  # before a version can name them
    compare_features(p, space.root, registry, return_state=True)  # whatever comes of it, the retrain goes on
    with cost.measure(space.root, outcome.JUDGE):
        verdict = judge_candidate(p, space, registry, run)
    verdict = outcome.add_costs(verdict, asked.read_costs(), asked.kind, cpu_price=p.policy.cpu_price)
    tell_who_approves(p, verdict, decision)
    # While a person decides, other retrains wait: they would be judged against a champion that is about to go.
    verdict = people.ask_approval(verdict, p.gate)
    verdict, version = carry_out(p, registry, run, verdict, decision=name_decision(asked))
    write_cards(p, space.root, registry, run, verdict, version, return_state=True)  # a page less stops no retrain
    state.publish(p, space.root)
    return Retrained(run.as_of, run.record, verdict, run.run_id, version, stages, read_reports(p, space.root))


def _refuse_further_attempt(p: params.Params, attempt: int) -> None:
    """The automations that run a crashed retrain again do not count its attempts: this error ends them."""
    if attempt > p.policy.attempts:
        raise ValueError(
            f"`attempt <= policy.attempts` must hold, but this retrain has crashed {attempt} times and policy.attempts "
            f"is {p.policy.attempts}. See in the logs of those runs why; then start it by hand, or raise "
            "policy.attempts."
        )


@retried("compare features")
def compare_features(
    p: params.Params, root: Path, registry: Registry | None, champion: Version | None = None
) -> skew.Skew | None:
    """Warn of each feature whose value, computed today, differs from the one that the champion predicted with. The
    retrain goes on: late data may change a feature, and the candidate is judged on its own holdout."""
    logger = get_run_logger()
    champion = registry.find_champion() if registry else champion
    if champion is None:
        return None
    with closing(open_journal(p.journal)) as journal:
        try:
            difference = skew.compare(p, root, registry=registry, journal=journal, champion=champion)
        except ValueError as error:
            logger.warning("version %s's features cannot be computed again: %s", champion.number, error)
            return None
    say = logger.warning if difference.columns else logger.info
    say("%s", " ".join(skew.describe(difference)))
    if difference.columns:
        when = f"from {difference.since} to {difference.until}"
        artifacts.create_table_artifact(skew.to_rows(difference.columns), key="features-differ", description=when)
    return difference


@retried("choose the recipe")
def choose_recipe(p: params.Params, kind: RetrainKind) -> dict[str, Any]:
    """The settings by which a refresh takes the champion's recipe, and a contender's look the contender's.

    Only a first model must beat the baselines, so that the cheapest alone is fitted.

    Raises:
        ValueError: No version serves, or no recipe is in the race.
    """
    if kind == "search":
        return {}
    registry = open_registry(p.registry)
    champion = registry.find_champion()
    if champion is None:
        raise ValueError(f"no version serves, so there is no {kind}: retrain with --kind search first")
    run = champion.run_id
    if kind == "contender":
        contender = ledger.find_contender(registry.read_ledger())
        if contender is None:
            raise ValueError("no recipe is in the race against the champion's: retrain with --kind search first")
        run = contender.run
    tuned = recipe.fetch_tuned(registry, run)
    given = {"params": tuned.params, "rounds": tuned.rounds, "dropped": tuned.dropped}
    return {"tune.recipe": given, "evaluate.baselines": ["constant"]}


@retried("limit the cost")
def limit_cost(p: params.Params, kind: RetrainKind, as_of: datetime | None, *, force: bool) -> dict[str, Any]:
    """The setting that bounds a search by what policy.money leaves. Raises ValueError where it leaves too little."""
    if p.policy.money is None or force:
        return {}
    entries = open_registry(p.registry).read_ledger()
    now = as_of or max((entry.as_of for entry in entries), default=datetime.max)
    costs = decisions.measure_costs(entries, now)
    if obstacle := obstacles.explain_money(kind, p.policy, costs):
        raise ValueError(f"{obstacle} With --force it starts all the same.")
    limit = obstacles.allot_trials(p.policy, costs)
    return {"tune.cpu": params.spell(limit)} if limit and kind == "search" else {}


@retried("nothing changed")
def close_same(
    p: params.Params, space: workspaces.Workspace, asked: answers.Asked, closer: same.Closer
) -> same.Closed | None:
    """Close a retrain whose stages came to what they came to before, if that is what serves."""
    key = record.hash_entries(record.read_entries(space.root))
    as_of = manifest.FeaturesManifest.read(space.root / p.paths.features).as_of
    made = same.Made(space.root, key, as_of, name_decision(asked), asked.kind, asked.read_costs())
    if (closed := closer.close(made)) is None:
        return None
    get_run_logger().info("%s: %s", closed.verdict.outcome, " ".join(closed.verdict.reasons))
    compare_features(p, space.root, None, closed.champion, return_state=True)
    push_outputs(space)
    state.publish(p, space.root)
    return closed


def name_decision(asked: answers.Asked) -> str:
    return asked.decision or f"retrain-{runtime.flow_run.id}"


@retried("tell who approves")
def tell_who_approves(p: params.Params, verdict: Verdict, decision: str | None) -> None:
    if p.gate.approval == "required" and verdict.promotes:
        why = f"{' '.join(verdict.reasons)} The run's page in the Prefect UI asks whether to promote it."
        cause = f"approve {decision or runtime.flow_run.id}"
        people.tell(p, f"evergreen: a candidate of {p.registry.model} waits for approval", why, cause=cause)


@dataclass(frozen=True)
class Recorded:
    record: str
    run_id: str
    as_of: str


@retried("on record")
def record_run(p: params.Params, space: workspaces.Workspace, registry: Registry) -> Recorded:
    """Find the MLflow run of what the stages made, or log it if their results were restored from elsewhere."""
    key = record.record(p, space.root, environment=list_lineage(space))
    run_id = registry.runs.find(key)
    assert run_id is not None  # record has just seen to it
    as_of = manifest.FeaturesManifest.read(space.root / p.paths.features).as_of
    return Recorded(key, run_id, as_of.isoformat())


@retried("gate")
def judge_candidate(p: params.Params, space: workspaces.Workspace, registry: Registry, run: Recorded) -> Verdict:
    """Finish a promotion or rollback that was cut off, then ask the gate."""
    answers.finish_open(registry)
    champion = registry.find_champion()
    _refuse_other_key(space.root / p.paths.raw, p, champion)
    with pass_on_logs():  # evidence may take minutes
        verdict = judge.judge_candidate(
            p, space.root, run.record, registry=registry, champion=champion, home=params.home()
        )
    get_run_logger().info("%s: %s", verdict.outcome, " ".join(verdict.reasons))
    return verdict


def _refuse_other_key(raw: Path, p: params.Params, champion: Version | None) -> None:
    """Another key gives every person another pseudonym: a change must be declared in params.yaml."""
    now = manifest.RawManifest.read(raw).pii_key_id
    then = champion.tags.get(tags.PII_KEY_ID) if champion else None
    if then and now != then and p.ingest.pii_key_id != now:
        raise ValueError(
            f"the champion's data was pseudonymised with the key {then}, this run's with {now}. Set EVERGREEN_PII_KEY "
            f"to the old key, or set ingest.pii_key_id: {now} in params.yaml to say that the change is meant."
        )


@retried("promote")
def carry_out(
    p: params.Params, registry: Registry, run: Recorded, verdict: Verdict, *, decision: str
) -> tuple[Verdict, int | None]:
    """Write the verdict to the ledger and, on PROMOTE, move the alias. Returns the verdict and the new version."""
    as_of = datetime.fromisoformat(run.as_of)
    with registry.tracking.lock:  # no rollback may come between the question who serves and the answer
        serving = registry.find_champion()
        verdict = judge.hold_if_another_serves(verdict, serving)
        outcome.add_verdict(registry.runs, run.run_id, verdict, cpu_price=p.policy.cpu_price)
        if verdict.promotes:
            labels = {tags.FLOW_RUN: str(runtime.flow_run.id or ""), tags.GATE_METRIC: p.gate.metric}
            done = changes.promote(
                registry,
                run.run_id,
                decision=decision,
                verdict=verdict.to_dict(),
                as_of=as_of,
                tags=labels,
                cpu=verdict.figures["cpu_s"],
            )
            return verdict, done.number
        champion = serving.number if serving else None
        outcome.append_verdict(registry, verdict, run.run_id, decision=decision, as_of=as_of, champion=champion)
    return verdict, None


@retried("cards")
def write_cards(
    p: params.Params, root: Path, registry: Registry, run: Recorded, verdict: Verdict, version: int | None
) -> None:
    """The cards of the candidate and its data: pages beside this run, and files of its MLflow run."""
    against = verdict.figures.get("champion_version")
    pages = {
        card.NAME: card.make_page(p, root, registry.runs, verdict, version=version, run_id=run.run_id),
        datacard.NAME: card.make_data_page(p, root, registry.read_version(against) if against else None, registry.runs),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name, page in pages.items():
            (Path(scratch) / name).write_text(page, encoding="utf-8")
        registry.runs.add_files(run.run_id, Path(scratch))
    for name, page in pages.items():
        key = name.removesuffix(".md").replace("_", "-")
        artifacts.create_markdown_artifact(page, key=key, description=f"as of {run.as_of}")


def read_reports(p: params.Params, root: Path) -> dict[str, Any]:
    """Read the stages' reports, since the workspace is removed when the run ends."""
    files = {"quality": p.paths.reports / "quality.json", "tuned": p.paths.models / "tuned.json"}
    files |= {name: p.paths.reports / f"{name}.json" for name in ("metrics", "leaderboard", "slices")}
    return {name: json.loads((root / path).read_text()) for name, path in files.items()}


@retried("publish")
def publish(done: Retrained, p: params.Params) -> None:
    """The artifacts that the Prefect UI shows beside the run."""
    artifacts.create_markdown_artifact(render_verdict(done.verdict), key="verdict", description=f"as of {done.as_of}")
    artifacts.create_table_artifact(
        done.reports["leaderboard"], key="metrics", description="on the holdout, the best first"
    )
    steps = [
        {
            "stage": stage.name,
            "status": stage.status,
            "seconds": round(stage.wall, 1),
            "CPU seconds": round(stage.cpu, 1),
        }
        for stage in done.stages
    ]
    artifacts.create_table_artifact(steps, key="stages", description="what ran, and what was taken from the cache")
    links = done.links
    if links is None:
        registry = open_registry(p.registry)
        publish_picture(done, registry)
        links = outcome.find_links(registry, done.run_id, done.verdict)
    artifacts.create_link_artifact(links.run, key="mlflow-run", link_text="the MLflow run")
    text = f"all candidates that were judged against {links.against}"
    artifacts.create_link_artifact(links.comparison, key="mlflow-compare", link_text=text)


def publish_picture(done: Retrained, registry: Registry) -> None:
    """The evidence as a picture, in the Prefect UI and beside the MLflow run."""
    with tempfile.TemporaryDirectory() as scratch:
        path, as_of = Path(scratch) / "pictures" / "verdict.png", datetime.fromisoformat(done.as_of)
        if outcome.draw(path, done.verdict, params.to_utc(as_of), registry.read_ledger()):
            registry.runs.add_files(done.run_id, Path(scratch))
            # The picture itself is the address: the UI's reader need not be on the machine that drew it.
            address = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            artifacts.create_image_artifact(address, key="verdict-picture", description=f"as of {done.as_of}")


def describe(done: Retrained | None) -> str:
    """The retrain as a person reads it."""
    return render_verdict(done.verdict) if done else "Nothing was trained: the log says why."


if __name__ == "__main__":
    cli.run("retrain")
