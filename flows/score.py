"""score: bring in what has arrived, have the champion predict it, and journal predictions and outcomes.

    python -m flows.score

The scheduled tick of the loop. With clock.step each run brings that much more of history, as if it were arriving.
"""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_run_logger

from flows import cli, people, runs, stages
from tasks import params
from tasks.data import freshness, state
from tasks.data.manifest import RawManifest
from tasks.promotion.registry import open_registry
from tasks.runtime import clock, locks
from tasks.serving import score as work
from tasks.serving.journal import open_journal


@flow(name="score", flow_run_name=runs.name_tick)
def score(
    *,
    as_of: datetime | None = None,
    force: bool = False,
) -> work.Scored:
    """Run the stages up to features at as_of, and journal the champion's predictions and the outcomes that came.

    Args:
        as_of: Event time "now", in UTC, such as 2013-07-01T00:00:00Z. Empty: the clock of params.yaml.
        force: On: take an as_of beyond the data, or ahead of the clock, as it is.
    """
    if skip := runs.skip_if_busy("score"):
        return skip  # type: ignore[no-any-return]  # the run's end: Prefect hands it to nobody
    with locks.take_turn(params.home(), name="score", say=get_run_logger().info):
        settings = params.load().clock
        moment = params.to_utc(as_of) if as_of else clock.now_at_next_tick(settings)
        if moment:
            clock.refuse_ahead(settings, moment, force=force, ticks=True)
        with stages.make_features({"clock.as_of": moment}, force=force) as space:
            p = params.load(space.root / "params.yaml")
            done = journal_predictions(p, space.root)
            tell_stale(p, space.root, moment or datetime.now(UTC).replace(tzinfo=None), return_state=True)
        _tick(settings, done)
    runs.publish(describe(done), key="scored", description=f"as of {done.as_of}")
    return done


def _tick(settings: params.Clock, done: work.Scored) -> None:
    """Advance the stored clock, up to the end of the sources. It advances without a champion too: a first model that is
    held must not be judged on the same rows for ever."""
    if done.limit and (stored := clock.reset_beyond(settings, limit=done.limit, end=done.as_of)):
        get_run_logger().warning("the stored clock was at %s, beyond the data: it is at %s now", stored, done.as_of)
        return
    before = clock.now(settings)
    if done.newest and settings.step and before and done.newest < before:
        get_run_logger().warning(
            "no row arrived from %s to %s, so the clock stays: the sources end there, or clock.step (%s) is too short",
            before,
            done.as_of,
            params.spell(settings.step),
        )
    elif done.newest:
        clock.advance(settings, done.as_of)


@runs.retried("journal")
def journal_predictions(p: params.Params, root: Path) -> work.Scored:
    """Append the predictions and outcomes to the journal, and merge its small files."""
    with closing(open_journal(p.journal)) as journal:
        state.publish(p, root)
        done = work.score(p, root, registry=open_registry(p.registry), journal=journal)
        journal.compact()
    return done


@runs.retried("tell what is stale")
def tell_stale(p: params.Params, root: Path, now: datetime) -> None:
    """Tell a person of each table that does not keep what `fresh_within` promises, once for each newest row."""
    for stale in freshness.find_stale(p, RawManifest.read(root / p.paths.raw), now):
        subject = f"evergreen: the table {stale.table} of {p.registry.model} is stale"
        people.tell(p, subject, stale.message, cause=stale.cause)


def describe(done: work.Scored) -> str:
    """The run as a person reads it."""
    if done.version is None:
        return "No champion serves yet: nothing was scored. Run the retrain flow first."
    return (
        f"As of {done.as_of}: {done.predictions:,} predictions by version {done.version}, {done.outcomes:,} outcomes."
    )


if __name__ == "__main__":
    cli.run("score")
