"""replay: what each retrain policy would have cost, and saved, on the history that there is.

    python -m flows.replay --since 2013-05-01 --until 2013-12-31 --policies never,every:28d,both --trials 12

The pipeline's stages up to features run once, as of the end. Then each policy of replay.policies is walked from `since`
on: every model is a task run, kept under the home, so that a replay that was killed goes on where it was. The table and
the picture are artifacts of the run, and files of an MLflow run. What really serves is not touched.
"""

import base64
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field
from rich.console import Group
from rich.table import Table

from flows import cli
from flows.forms import Names
from flows.retrain import run_stages
from flows.runs import retried
from tasks import params
from tasks.params import Params
from tasks.promotion import tracking
from tasks.promotion.registry import open_registry
from tasks.promotion.tags import FLOW_RUN, REPLAY
from tasks.replay import history
from tasks.replay.compare import Comparison, compare_policies
from tasks.replay.history import Candidate, History
from tasks.replay.report import list_points, render_markdown, summarize, tabulate, write_report
from tasks.replay.walk import Grid, Past, check_policy, find_earliest
from tasks.runtime import clock, locks, workspaces

LAST = "features"  # of the pipeline's stages: what comes after it is trained for each as_of


def name_run() -> str:
    """The run's name in the UI: the flow's, and its period when somebody gave one."""
    times = [str(flow_run.parameters[name])[:10] for name in ("since", "until") if flow_run.parameters.get(name)]
    return " ".join(["replay", *times])


@flow(name="replay", flow_run_name=name_run)
def replay(
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    policies: Names = None,
    trials: Annotated[int | None, Field(ge=1)] = None,
    force: bool = False,
) -> Comparison:
    """Features as of the end, then every policy over the same weeks; the table, the picture, and an MLflow run.

    Args:
        since: When the first decision falls, in UTC. Empty: as early as params.yaml's split leaves history for.
        until: Where the walk ends, in UTC. Empty: the clock of params.yaml.
        policies: Those to compare, such as never, every:28d, drift, both. Empty: replay.policies.
        trials: The most trials of each search. Empty: replay.trials.
        force: On: take an end beyond the data, or ahead of the clock, as it is.
    """
    own = params.load()
    names = [check_policy(name) for name in policies or own.replay.policies]
    with locks.take_turn(params.home(), name="replay", say=get_run_logger().info):
        if until:
            clock.refuse_ahead(own.clock, params.to_utc(until), force=force)
        overrides = _overrides(until or clock.now(own.clock), trials)
        with workspaces.open_workspace(Path.cwd(), overrides=overrides) as space:
            tracking.preload()
            run_stages(space, last=LAST, force=force)
            done = walk_policies(space.root, params.to_utc(since) if since else None, names)
    publish(done, own)
    return done


def _overrides(until: datetime | None, trials: int | None) -> dict[str, Any]:
    asked = {"clock.as_of": until and params.to_utc(until).isoformat(), "replay.trials": trials}
    return {name: value for name, value in asked.items() if value is not None}


def walk_policies(root: Path, since: datetime | None, names: list[str]) -> Comparison:
    """Walk every policy over the features that a workspace holds, until they end."""
    p = params.load(root / "params.yaml")
    sql, candidates = (root / history.SQL).read_text(), candidates_folder(params.home())
    past = History(history.reduce_search(p), root / p.paths.features, sql, candidates)
    grid = Grid(since or find_earliest(past.rows, p), past.as_of, p.replay.step)
    return compare_policies(Past(past, grid.since, make=candidate), grid, names, say=get_run_logger().info)


def candidates_folder(home: Path) -> Path:
    return home / "replay" / "candidates"


@task(name="candidate", task_run_name="candidate {as_of:%Y-%m-%d}", cache_policy=NO_CACHE)
def candidate(past: History, as_of: datetime) -> Candidate:
    """The model of one moment, trained now or by an earlier replay."""
    return past.candidate(as_of)


def result_folder(done: Comparison, home: Path) -> Path:
    """The folder of the newest replay of a period."""
    return home / "replay" / f"{done.since:%Y-%m-%d}_{done.until:%Y-%m-%d}"


@retried("publish")
def publish(done: Comparison, p: Params) -> None:
    """Write the files, log the MLflow run, and make what the Prefect UI shows beside the run."""
    folder = result_folder(done, params.home())
    write_report(done, folder)
    run_id, link = log_comparison(done, folder, p)
    create_markdown_artifact(render_markdown(done), key="replay", description=f"files: {folder}")
    create_table_artifact([dict(row) for row in tabulate(done)], key="replay-table", description=summarize(done))
    create_image_artifact(_picture(folder / "replay.png"), key="replay-picture", description=summarize(done))
    create_link_artifact(link, key="mlflow-run", link_text=f"the MLflow run {run_id[:8]}")
    get_run_logger().info("%s", render_markdown(done))


@retried("log")
def log_comparison(done: Comparison, folder: Path, p: Params) -> tuple[str, str]:
    """Log the comparison as one MLflow run. Returns the run's id, and its address in the UI."""
    registry = open_registry(p.registry)
    name = f"replay {done.since:%Y-%m-%d} to {done.until:%Y-%m-%d}"
    tags = {REPLAY: ",".join(line.policy for line in done.lines), FLOW_RUN: str(flow_run.id or "")}
    run_id = registry.runs.log_files(
        name, note=render_markdown(done), metrics=list_points(done), files=folder, tags=tags
    )
    return run_id, registry.tracking.find_link(run_id)


def _picture(path: Path) -> str:
    """The picture itself as an address: the UI's reader need not be on the machine that drew it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def describe(done: Comparison) -> Group:
    """The replay as a person reads it in a terminal."""
    rows = tabulate(done)
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(*row.values())
    return Group(summarize(done), table, f"files: {result_folder(done, params.home())}")


if __name__ == "__main__":
    cli.run("replay")
