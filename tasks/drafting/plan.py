"""plan: which stages and periods the next run will work on, and for about how long, before anything runs.

    evergreen plan

It compares params.yaml, features.sql, the code and the sources with what the last runs read and made. To know which
periods change, ingest and clean are rehearsed in a folder that is removed (tasks/data/rehearsal.py); nothing else is
written, and no server is asked. A retrain and `dvc repro` share their cache, so the plan is of both.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks import params
from tasks.data import rehearsal
from tasks.drafting.forecast import Known, Step, forecast
from tasks.params import Params, to_utc
from tasks.runtime import clock, cost, graph, stage
from tasks.runtime.overrides import override_params

COLOURS = {"runs": "bold", "may run": "yellow", "cached": "dim", "unchanged": "dim", "fails": "bold red"}
MOST_PERIODS = 3  # that are named; of more only the first and the last are


def main(*, as_of: datetime | None = None) -> int:
    """Say which stages and periods the next run will work on, and for about how long. Nothing is changed.

    Args:
        as_of: Event time "now" of that run, in UTC. Empty: the clock of params.yaml.
    """
    steps = plan(Path.cwd(), as_of=as_of)
    Console(highlight=False).print(tabulate(steps))
    print(f"\n{summarize(steps)}")
    return 1 if any(step.will == "fails" for step in steps) else 0


def plan(checkout: Path, *, as_of: datetime | None = None) -> list[Step]:
    """The stages of the next run. Raises ValueError for a params.yaml that no run would take."""
    checkout, home = checkout.resolve(), params.home(checkout)
    p = params.load(checkout / "params.yaml")
    stage.check_settings(p, checkout)
    moment = as_of or clock.now(p.clock)
    with tempfile.TemporaryDirectory(prefix="evergreen-plan-") as scratch:
        settings = Path(scratch) / "params.yaml"
        settings.write_bytes((checkout / "params.yaml").read_bytes())
        (Path(scratch) / "dvc.yaml").write_bytes((checkout / "dvc.yaml").read_bytes())
        if moment:
            override_params(settings, {"clock.as_of": to_utc(moment)})
        nodes, cache = graph.read_nodes(Path(scratch)), graph.open_cache(checkout, home)
        with rehearsal.rehearse(checkout, settings) as rehearsed:
            return forecast(
                nodes,
                _gather(p, checkout, home, nodes, cache, rehearsed),
                find=cache.find,
                find_last=cache.find_last,
                open_content=cache.open,
            )


def _gather(
    p: Params,
    checkout: Path,
    home: Path,
    nodes: Sequence[graph.Node],
    cache: graph.Cache,
    rehearsed: rehearsal.Rehearsed,
) -> Known:
    """What the forecast is made of, read from the disk."""
    outs = {out for node in nodes for out in node.outs}
    code = {dep for node in nodes for dep in node.deps if not graph.find_out(dep, outs)}
    paths = {out for node in nodes if node.name in rehearsed.seconds for out in node.outs}
    made = {out: graph.hash_path(rehearsed.folder / out) for out in sorted(paths)}
    raw = str(p.paths.raw)
    before = cache.find_last("ingest")
    new = _list_new(made[raw], cache.open(before.outs[raw])) if raw in made and before and raw in before.outs else None
    ingested = _list_new(made[raw]) if raw in made else []
    pasts = {node.name: cost.read_past(home, node.name) for node in nodes}
    return Known(
        files={dep: graph.hash_path(checkout / dep).md5 for dep in sorted(code) if (checkout / dep).exists()},
        outs=made,
        made=rehearsed.made | {"ingest": ingested if new is None else new},
        periods=rehearsed.periods | {"ingest": ingested},
        seconds=rehearsed.seconds,
        past={name: past for name, past in pasts.items() if past},
        sizes={node.name: stage.find_size(node.name, p) for node in nodes},
        failed=rehearsed.failed,
    )


def _list_new(now: graph.Content, before: graph.Content | None = None) -> list[str]:
    """The periods of data/raw whose files are new or other than before."""
    old = before.files if before else {}
    return [
        name.removesuffix(".parquet")
        for name, md5 in sorted(now.files.items())
        if name.endswith(".parquet") and old.get(name) != md5
    ]


# --- in words --------------------------------------------------------------------------------------------------------


def tabulate(steps: Sequence[Step]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", style="bold", no_wrap=True)
    table.add_column("will", no_wrap=True)
    table.add_column("about", justify="right", no_wrap=True)
    table.add_column("periods", overflow="fold")
    table.add_column("why", overflow="fold")
    for step in steps:
        colour = COLOURS.get(step.will, "")
        is_work = step.will in ("runs", "may run")
        time = (spell_seconds(step.seconds) if step.seconds is not None else "?") if is_work else ""
        will = f"[{colour}]{step.will}[/]" if colour else step.will
        table.add_row(step.name, will, time, describe_periods(step), escape("; ".join(step.why)))
    return table


def describe_periods(step: Step) -> str:
    """Of each table the periods that are made; at most a few by name."""
    if step.periods is None or step.will not in ("runs", "may run"):
        return ""
    if not step.periods:
        return f"none of {step.of}"
    names: dict[str, list[str]] = {}
    for period in step.periods:
        table, _, name = period.rpartition("/")
        names.setdefault(table, []).append(name)
    counts = Counter({table: len(found) for table, found in names.items()})
    parts = [
        f"{table} {', '.join(found) if len(found) <= MOST_PERIODS else f'{found[0]} … {found[-1]} ({counts[table]})'}"
        for table, found in names.items()
    ]
    return f"{len(step.periods)} of {step.of}: {'; '.join(parts)}"


def summarize(steps: Sequence[Step]) -> str:
    work = [step for step in steps if step.will in ("runs", "may run")]
    if failed := next((step for step in steps if step.will == "fails"), None):
        return f"{failed.name} would fail. Mend what it says; `evergreen check` reads the whole configuration."
    if all(step.name == "ingest" or step.will not in ("runs", "may run") for step in steps):
        return "Nothing has changed: only ingest looks at the sources."
    unknown = [step.name for step in work if step.seconds is None]
    total = sum(step.seconds or 0.0 for step in work)
    words = f"About {spell_seconds(total)} in all, by what the last runs took"
    if unknown:
        words = f"About {spell_seconds(total)}, and what {', '.join(unknown)} will take, of which no run is known here"
    return f"{words}. Nothing was changed. Next: evergreen retrain"


def spell_seconds(seconds: float) -> str:
    """A length of time as people say it: 0.4 s, 12 s, 3 min, 2 h."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
