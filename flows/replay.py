"""replay: what each retrain policy would have cost, and saved, on the history that there is.

    python -m flows.replay --since 2013-04-15 --last-date 2013-08-15 --dates 12 --until 2013-12-31

The pipeline's stages up to features run once, as of the end. Then each policy of replay.policies is walked from each
first date on: every model is a task run, kept under the home, so that a replay that was killed goes on where it was.
The tables and the picture are artifacts of the run, and files of an MLflow run. What really serves is not touched. It
ends with a recommendation; `--adopt` writes that one into params.yaml.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import artifacts, cache_policies, flow, get_run_logger, runtime, task
from prefect.utilities.annotations import quote
from pydantic import Field
from rich.console import Group
from rich.table import Table

from flows import cli, forms, runs, stages
from tasks import params
from tasks.promotion import tags
from tasks.promotion.registry import open_registry
from tasks.replay import ahead, compare, history, recommend, report
from tasks.replay import policies as policy_names
from tasks.replay.past import Needs, Past
from tasks.runtime import clock, locks


@dataclass(frozen=True)
class Replayed:
    """A comparison of policies, the one that it speaks for, and whether params.yaml has its settings now."""

    comparison: compare.Comparison
    recommendation: recommend.Recommendation
    adopted: bool = False


def name_run() -> str:
    """The run's name in the UI: the flow's, and its period when somebody gave one."""
    given = runtime.flow_run.parameters
    return " ".join(["replay", *(str(given[name])[:10] for name in ("since", "until") if given.get(name))])


@flow(name="replay", flow_run_name=name_run)
def replay(
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    last_date: datetime | None = None,
    dates: Annotated[int | None, Field(ge=1)] = None,
    policies: forms.Names = None,
    trials: Annotated[int | None, Field(ge=1)] = None,
    adopt: bool = False,
    force: bool = False,
) -> Replayed:
    """Features as of the end, then every policy from every first date; the tables, the picture, and an MLflow run.

    Args:
        since: The first of the first dates, in UTC. Empty: as early as params.yaml's split leaves history for.
        until: Where every walk ends, in UTC. Empty: the clock of params.yaml.
        last_date: No first date is later, in UTC. Empty: the middle of the period.
        dates: How many first dates, spread evenly over the grid of replay.step. Empty: replay.dates.
        policies: Those to compare, such as never, default, refresh:7d, every:28d, ungated:7d. Empty: replay.policies.
        trials: The most trials of each search. Empty: replay.trials.
        adopt: On: write the settings of the recommended policy into params.yaml, which keeps its comments.
        force: On: take an end beyond the data, or ahead of the clock, as it is.
    """
    own = params.load()
    names = [policy_names.check_policy(name) for name in policies or own.replay.policies]
    with locks.take_turn(params.home(), name="replay", say=get_run_logger().info):
        if until:
            clock.refuse_ahead(own.clock, params.to_utc(until), force=force)
        overrides = {"clock.as_of": until or clock.now(own.clock), "replay.trials": trials, "replay.dates": dates}
        begin, last = (params.to_utc(moment) if moment else None for moment in (since, last_date))
        with stages.make_features(overrides, force=force) as space:
            comparison = walk_policies(space.root, begin, last, names)
    recommendation = recommend.recommend_policy(comparison, own)
    if adopt:
        recommend.adopt(recommendation, Path("params.yaml"))
    done = Replayed(comparison, recommendation, adopt)
    publish(done, own)
    return done


def walk_policies(root: Path, since: datetime | None, last: datetime | None, names: list[str]) -> compare.Comparison:
    """Walk every policy over the features that a workspace holds, until they end."""
    p = params.load(root / "params.yaml")
    sql, candidates = (root / history.SQL).read_text(), params.home() / "replay" / "candidates"
    past = history.History(history.reduce_search(p), root / p.paths.features, sql, candidates)
    first = since or policy_names.find_earliest(past.rows, p)
    grid = policy_names.Grid(first, past.as_of, p.replay.step)
    dates = grid.spread_dates(p.replay.dates, last or first + (past.as_of - first) / 2)
    with ahead.open_workers(past) as workers:
        shared = Past(past, grid.since, make=partial(make_candidates, workers))
        return compare.compare_policies(shared, grid, names, dates, say=get_run_logger().info)


def make_candidates(
    workers: ahead.Workers, _past: history.History, trainings: Sequence[history.Training], fits: Needs
) -> None:
    """Make them side by side. A task run for each candidate, and for each recipe's past fits, waits for its own."""
    jobs, fit_jobs = workers.start(trainings, fits)
    for training, job in zip(trainings, jobs, strict=True):
        candidate(training, quote(job))
    for search, job in zip(fits, fit_jobs, strict=True):
        past_fits(search, quote(job))


@task(name="candidate", task_run_name="candidate {training.as_of:%Y-%m-%d}", cache_policy=cache_policies.NO_CACHE)
def candidate(training: history.Training, job: Any) -> None:  # noqa: ARG001 (it names the run)
    """The model of one moment."""
    job.result()


@task(name="past fits", task_run_name="past fits of {search:%Y-%m-%d}", cache_policy=cache_policies.NO_CACHE)
def past_fits(search: datetime, job: Any) -> None:  # noqa: ARG001 (it names the run)
    """The past fits of one recipe, by which refreshes are judged."""
    job.result()


def result_folder(done: compare.Comparison) -> Path:
    """The folder of the newest replay of a period."""
    return params.home() / "replay" / f"{done.grid.since:%Y-%m-%d}_{done.grid.until:%Y-%m-%d}"


@runs.retried("publish")
def publish(replayed: Replayed, p: params.Params) -> None:
    """Write the files, log the MLflow run, and make what the Prefect UI shows beside the run."""
    done, recommendation = replayed.comparison, replayed.recommendation
    folder, page, summary = result_folder(done), report.render_markdown(done, recommendation), report.summarize(done)
    report.write_report(done, folder, recommendation)
    run_id, link = log_comparison(done, page, folder, p)
    # The picture itself is the address: the UI's reader need not be on the machine that drew it.
    picture = f"data:image/png;base64,{base64.b64encode((folder / 'replay.png').read_bytes()).decode()}"
    runs.publish(page, key="replay", description=f"files: {folder}")
    for key, table in (("replay-table", report.tabulate_gains(done)), ("replay-costs", report.tabulate_costs(done))):
        artifacts.create_table_artifact([dict(row) for row in table], key=key, description=summary)
    artifacts.create_image_artifact(picture, key="replay-picture", description=summary)
    artifacts.create_link_artifact(link, key="mlflow-run", link_text=f"the MLflow run {run_id[:8]}")


@runs.retried("log")
def log_comparison(done: compare.Comparison, page: str, folder: Path, p: params.Params) -> tuple[str, str]:
    """Log the comparison as one MLflow run. Returns the run's id, and its address in the UI."""
    registry = open_registry(p.registry)
    run_id = registry.runs.log_files(
        f"replay {done.grid.since:%Y-%m-%d} to {done.grid.until:%Y-%m-%d}",
        note=page,
        metrics=report.list_points(done),
        files=folder,
        tags={
            tags.REPLAY: ",".join(line.policy for line in done.lines),
            tags.FLOW_RUN: str(runtime.flow_run.id or ""),
        },
    )
    return run_id, registry.tracking.find_link(run_id)


def describe(replayed: Replayed) -> Group:
    """The replay as a person reads it in a terminal."""
    done = replayed.comparison
    tables = [_draw_table(rows) for rows in (report.tabulate_gains(done), report.tabulate_costs(done))]
    adopted = "params.yaml has these settings now." if replayed.adopted else "`--adopt` writes it into params.yaml."
    advice = f"{replayed.recommendation.sentence} {adopted}"
    files = f"files: {result_folder(done)}"
    return Group(report.summarize(done), *tables, report.explain_columns(done), *done.notes, "", advice, files)


def _draw_table(rows: list[dict[str, str]]) -> Table:
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


if __name__ == "__main__":
    cli.run("replay")
