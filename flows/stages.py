"""stages: the pipeline's stages, each as a task run of its name. What each needs and makes is said by dvc.yaml."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import cache_policies, get_run_logger, runtime, task

from flows.runs import retried
from tasks import params
from tasks.data import datasets, feasibility
from tasks.data.manifest import RawManifest
from tasks.promotion import tracking
from tasks.runtime import clock, openlineage, pipeline, project, remote, workspaces

FIRST = "ingest"  # it knows what the sources have
LAST_OF_DATA = "features"  # what comes after it is training


@contextmanager
def make_features(overrides: Mapping[str, Any], *, force: bool) -> Iterator[workspaces.Workspace]:
    """A workspace in which the stages up to features have run. An override that is None leaves params.yaml's value."""
    values = {name: value for name, value in overrides.items() if value is not None}
    with workspaces.open_workspace(Path.cwd(), overrides=values) as space:
        tracking.preload()
        run_stages(space, last=LAST_OF_DATA, force=force)
        yield space


def run_stages(
    space: workspaces.Workspace,
    *,
    last: str | None = None,
    force: bool = False,
    stops: Callable[[datetime, datetime | None], bool] = lambda *_: False,
) -> tuple[pipeline.StageRun, ...] | None:
    """The stages of dvc.yaml, all or up to `last`, each as a task run of its name that waits for those it needs. What
    they do is told to OpenLineage's receiver, where the environment names one.

    Args:
        stops: Called with what ingest has found, its as_of and the end of the data, before a stage that costs. If it
            says so, no further stage runs and the result is None.

    Raises ValueError, before anything is spent, for an as_of beyond what ingest has brought, unless it is forced.
    """
    with openlineage.open_events() as events:
        return _run_stages(space, events, last=last, force=force, stops=stops)


def _run_stages(
    space: workspaces.Workspace,
    events: openlineage.Events,
    *,
    last: str | None,
    force: bool,
    stops: Callable[[datetime, datetime | None], bool],
) -> tuple[pipeline.StageRun, ...] | None:
    p, stages = params.load(space.root / "params.yaml"), pipeline.list_stages(space.root)
    names = list(stages)[: list(stages).index(last) + 1 if last else None]
    futures: dict[str, Any] = {FIRST: stage_task(FIRST).submit(space, FIRST, events)}
    _refuse_faulty_sql(p, space.root)  # while the sources are read
    futures[FIRST].wait()
    settled: dict[str, pipeline.StageRun] = {}
    if futures[FIRST].state.is_completed():
        manifest = RawManifest.read(space.root / p.paths.raw)
        clock.refuse_beyond(manifest.limit, manifest.as_of, force=force)
        misfit = _find_misfit(p, space.root) if last is None else None
        settled = {} if misfit else pipeline.settle_stages(space.root, names[1:])
        if len(settled) < len(names) - 1:
            tracking.preload()  # while stages run
            if stops(manifest.as_of, manifest.limit):
                return None
        if misfit:
            raise pipeline.StageFailed(f"{FIRST}: {misfit}")
    for name in names[1:]:
        needs = [futures[upstream] for upstream in stages[name]]
        futures[name] = stage_task(name).submit(space, name, events, settled=settled.get(name), wait_for=needs)
        futures[name].wait()
    runs = tuple(future.result() for future in futures.values())
    if last is None:
        workspaces.keep_lock(space)
    return runs


def list_changed(stages: Sequence[pipeline.StageRun]) -> list[str]:
    """The stages that have made anything. Ingest, which always runs, has made nothing where nothing after it has."""
    return [stage.name for stage in stages if stage.name != FIRST and stage.status != "unchanged"]


def _refuse_faulty_sql(p: params.Params, root: Path) -> None:
    try:
        feasibility.dry_run(p, root)
    except ValueError as error:
        raise pipeline.StageFailed(f"{FIRST}: {error}") from None


def _find_misfit(p: params.Params, root: Path) -> str | None:
    """Why there are too few rows for a verdict, if there are; warns of lesser problems."""
    problems = feasibility.check_workspace(p, root)
    for problem in problems:
        get_run_logger().warning("%s", problem.message)
    return feasibility.explain_refusal(problems)


def stage_task(name: str) -> Any:
    """The Prefect task of a stage. DVC decides what is cached, so Prefect does not."""
    return task(name=name, task_run_name=name, cache_policy=cache_policies.NO_CACHE)(run_stage)


def run_stage(
    space: workspaces.Workspace,
    name: str,
    events: openlineage.Events | None = None,
    *,
    settled: pipeline.StageRun | None = None,
    force: bool = False,
) -> pipeline.StageRun:
    """One stage, unless it is settled; what its program says goes to the log as it says it."""
    say = get_run_logger().info
    if settled:
        done = settled
    else:
        with watch_stage(space, name, events):
            done = pipeline.run_stage(space.root, name, env=list_lineage(space), on_line=say, force=force)
    say("%s: %s, %.1f s, %.1f s of CPU", name, done.status, done.wall, done.cpu)
    if done.status == "ran" and project.find_remote(space.root):
        push_early(space, name)
    return done


@contextmanager
def watch_stage(space: workspaces.Workspace, name: str, events: openlineage.Events | None) -> Iterator[None]:
    """Tell the receiver of lineage, if there is one, what a stage reads and makes, and how it ends."""
    if events is None or events.receiver is None:
        yield
        return
    p = params.load(space.root / "params.yaml")
    tables = datasets.open_tables(p, space.root, events.receiver.namespace, Path.cwd())
    parent = (str(runtime.flow_run.id), f"{p.registry.model}.{runtime.flow_run.flow_name}")
    job = openlineage.Job(f"{p.registry.model}.{name}", parent)
    with events.watch(job, str(runtime.task_run.id), lambda: tables.describe(name)):
        yield


def push_early(space: workspaces.Workspace, name: str) -> None:
    """What a stage has made, so that a run that is cut off goes on elsewhere from there. The run goes on without."""
    try:
        remote.push_outputs(space.root, name)
    except remote.RemoteFailed as error:
        get_run_logger().warning("%s: %s", name, error)


def push_outputs(space: workspaces.Workspace) -> None:
    """What all stages made, where the project has a remote: a version must not hang on the disk of one machine."""
    if address := project.find_remote(space.root):
        sent = retried("push")(remote.push_outputs)(space.root)
        get_run_logger().info("the DVC remote %s has all outputs; %d files were sent just now", address, sent)


def list_lineage(space: workspaces.Workspace) -> dict[str, str]:
    """The environment of the stages: what `record` cannot find out inside a workspace."""
    diff = {"EVERGREEN_DIFF": str(space.diff)} if space.diff else {}
    run_id = str(runtime.flow_run.id or "")
    return {**space.env, "EVERGREEN_COMMIT": space.commit, **diff, "EVERGREEN_FLOW_RUN": run_id}
