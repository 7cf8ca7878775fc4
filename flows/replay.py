"""replay: what each retrain policy would have cost, and saved, on the history that there is.

    python -m flows.replay --since 2013-05-01 --until 2013-12-31 --policies never,every:28d,both --trials 12

The pipeline's stages up to features run once, as of the end. Then each policy of replay.policies is walked from `since`
on: every model is a task run, kept under the home, so that a replay that was killed goes on where it was. The table and
the picture are artifacts of the run, and files of an MLflow run. What really serves is not touched.
"""

import base64
from datetime import datetime
from pathlib import Path
from typing import Annotated

from prefect import artifacts, cache_policies, flow, get_run_logger, runtime, task
from pydantic import Field
from rich.console import Group
from rich.table import Table

from flows import cli, forms, runs, stages
from tasks import params
from tasks.promotion import tags
from tasks.promotion.registry import open_registry
from tasks.replay import compare, history, report, walk
from tasks.runtime import clock, locks


def name_run() -> str:
    """The run's name in the UI: the flow's, and its period when somebody gave one."""
    given = runtime.flow_run.parameters
    return " ".join(["replay", *(str(given[name])[:10] for name in ("since", "until") if given.get(name))])


@flow(name="replay", flow_run_name=name_run)
def replay(
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    policies: forms.Names = None,
    trials: Annotated[int | None, Field(ge=1)] = None,
    force: bool = False,
) -> compare.Comparison:
    """Features as of the end, then every policy over the same weeks; the table, the picture, and an MLflow run.

    Args:
        since: When the first decision falls, in UTC. Empty: as early as params.yaml's split leaves history for.
        until: Where the walk ends, in UTC. Empty: the clock of params.yaml.
        policies: Those to compare, such as never, every:28d, drift, both. Empty: replay.policies.
        trials: The most trials of each search. Empty: replay.trials.
        force: On: take an end beyond the data, or ahead of the clock, as it is.
    """
    own = params.load()
    names = [walk.check_policy(name) for name in policies or own.replay.policies]
    with locks.take_turn(params.home(), name="replay", say=get_run_logger().info):
        if until:
            clock.refuse_ahead(own.clock, params.to_utc(until), force=force)
        overrides = {"clock.as_of": until or clock.now(own.clock), "replay.trials": trials}
        with stages.make_features(overrides, force=force) as space:
            done = walk_policies(space.root, params.to_utc(since) if since else None, names)
    publish(done, own)
    return done


def walk_policies(root: Path, since: datetime | None, names: list[str]) -> compare.Comparison:
    """Walk every policy over the features that a workspace holds, until they end."""
    p = params.load(root / "params.yaml")
    sql, candidates = (root / history.SQL).read_text(), params.home() / "replay" / "candidates"
    past = history.History(history.reduce_search(p), root / p.paths.features, sql, candidates)
    grid = walk.Grid(since or walk.find_earliest(past.rows, p), past.as_of, p.replay.step)
    walked = walk.Past(past, grid.since, make=candidate)
    return compare.compare_policies(walked, grid, names, say=get_run_logger().info)


@task(name="candidate", task_run_name="candidate {as_of:%Y-%m-%d}", cache_policy=cache_policies.NO_CACHE)
def candidate(past: history.History, as_of: datetime) -> history.Candidate:
    """The model of one moment, trained now or by an earlier replay."""
    return past.candidate(as_of)


def result_folder(done: compare.Comparison) -> Path:
    """The folder of the newest replay of a period."""
    return params.home() / "replay" / f"{done.grid.since:%Y-%m-%d}_{done.grid.until:%Y-%m-%d}"


@runs.retried("publish")
def publish(done: compare.Comparison, p: params.Params) -> None:
    """Write the files, log the MLflow run, and make what the Prefect UI shows beside the run."""
    folder, page, summary = result_folder(done), report.render_markdown(done), report.summarize(done)
    report.write_report(done, folder)
    run_id, link = log_comparison(done, folder, p)
    # The picture itself is the address: the UI's reader need not be on the machine that drew it.
    picture = f"data:image/png;base64,{base64.b64encode((folder / 'replay.png').read_bytes()).decode()}"
    runs.publish(page, key="replay", description=f"files: {folder}")
    table = [dict(row) for row in report.tabulate(done)]
    artifacts.create_table_artifact(table, key="replay-table", description=summary)
    artifacts.create_image_artifact(picture, key="replay-picture", description=summary)
    artifacts.create_link_artifact(link, key="mlflow-run", link_text=f"the MLflow run {run_id[:8]}")


@runs.retried("log")
def log_comparison(done: compare.Comparison, folder: Path, p: params.Params) -> tuple[str, str]:
    """Log the comparison as one MLflow run. Returns the run's id, and its address in the UI."""
    registry = open_registry(p.registry)
    run_id = registry.runs.log_files(
        f"replay {done.grid.since:%Y-%m-%d} to {done.grid.until:%Y-%m-%d}",
        note=report.render_markdown(done),
        metrics=report.list_points(done),
        files=folder,
        tags={
            tags.REPLAY: ",".join(line.policy for line in done.lines),
            tags.FLOW_RUN: str(runtime.flow_run.id or ""),
        },
    )
    return run_id, registry.tracking.find_link(run_id)


def describe(done: compare.Comparison) -> Group:
    """The replay as a person reads it in a terminal."""
    rows = report.tabulate(done)
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(*row.values())
    return Group(report.summarize(done), table, f"files: {result_folder(done)}")


if __name__ == "__main__":
    cli.run("replay")
