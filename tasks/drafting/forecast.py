"""forecast: which stages and periods a run will work on, and for about how long. It decides, and touches no file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.runtime.cost import Past
from tasks.runtime.graph import Content, Entry, Node, find_out

Will = Literal["runs", "may run", "cached", "unchanged", "fails", "unknown"]
SHOWN = 4  # names in a reason
Find = Callable[[Node, Mapping[str, str]], Entry | None]


@dataclass(frozen=True)
class Step:
    """What will become of a stage.

    Attributes:
        will: `may run`: only if what a stage before it makes anew comes out other than before. `cached`: an earlier run
            has made it. `unknown`: a stage before it fails.
        why: in words, empty where there is nothing to say.
        periods: those that it makes, such as `orders/2024-01`; None for a stage that knows no periods.
        of: how many periods it has in all.
        seconds: None where no run of it is known here. 0 where it does not run.
    """

    name: str
    will: Will
    why: tuple[str, ...] = ()
    periods: tuple[str, ...] | None = None
    of: int = 0
    seconds: float | None = 0.0


@dataclass(frozen=True)
class Known:
    """What a forecast is made of.

    Attributes:
        files: DVC's hash of each file that a stage depends on and none makes; a file that is missing is absent.
        outs: what the rehearsed stages make, by path; its stages always know what they make.
        made: by rehearsed stage, and features: the periods that it would make; `periods`: all.
        seconds: what rehearsed stages took.
        past: what each stage took when it ran last; `sizes`: how much of that unit is asked now.
        failed: the stage that fails, and why.
    """

    files: Mapping[str, str]
    outs: Mapping[str, Content]
    made: Mapping[str, Sequence[str]]
    periods: Mapping[str, Sequence[str]]
    seconds: Mapping[str, float]
    past: Mapping[str, Past]
    sizes: Mapping[str, float]
    failed: tuple[str, str] | None = None


def forecast(
    nodes: Sequence[Node],
    known: Known,
    *,
    find: Find,
    find_last: Callable[[str], Entry | None],
    open_content: Callable[[str], Content],
) -> list[Step]:
    """Each stage in turn, by what those before it will make.

    Args:
        nodes: In an order in which each comes after those that it needs.
        find: What a stage has made before of these very inputs (graph.Cache.find).
        find_last: What it read and made last, for the reasons.
        open_content: A hash of the cache with what it holds.
    """
    steps: list[Step] = []
    outs: dict[str, Content | None] = {}  # by path; None: only its run will tell
    makers: dict[str, str] = {}
    for node in nodes:
        deps = {path: _hash_of(path, outs, known.files) for path in node.deps}
        open_deps = [path for path, md5 in deps.items() if md5 is None]
        if known.failed and (steps and steps[-1].will in ("fails", "unknown")):
            step = Step(node.name, "unknown", seconds=None)
        elif known.failed and known.failed[0] == node.name:
            step = Step(node.name, "fails", (known.failed[1],), seconds=None)
        elif open_deps:
            upstream = list(dict.fromkeys(makers[str(find_out(path, outs))] for path in open_deps))
            changes = _list_reasons(node, find_last(node.name), deps)
            why = (*changes, f"it reads what {_join(upstream)} make{'s' * (len(upstream) == 1)} anew")
            step = _add_work(Step(node.name, "runs" if changes else "may run", why), known)
        else:
            whole = {path: md5 for path, md5 in deps.items() if md5 is not None}
            entry = None if node.always else find(node, whole)
            if entry:
                step = Step(node.name, entry.origin)
                outs |= {path: open_content(md5) for path, md5 in entry.outs.items()}
            else:
                why = tuple(_list_reasons(node, find_last(node.name), deps))
                why = ("it asks the sources in every run", *why) if node.always else why
                step = _add_work(Step(node.name, "runs", why or ("the cache lacks what it made",)), known)
        for path in node.outs:
            makers[path] = node.name
            outs.setdefault(path, known.outs.get(path))
        steps.append(step)
    return steps


def _hash_of(path: str, outs: Mapping[str, Content | None], files: Mapping[str, str]) -> str | None:
    """DVC's hash of what a stage will read; None where a stage before it has yet to make it."""
    out = find_out(path, outs)
    if out is None:
        return files.get(path, "missing")
    content = outs[out]
    if content is None or path == out:
        return content.md5 if content else None
    return content.files.get(path.removeprefix(f"{out}/"), "missing")


def _add_work(step: Step, known: Known) -> Step:
    """A stage that runs, with its periods and its time."""
    made = tuple(known.made[step.name]) if step.name in known.made else None
    all_of = len(known.periods.get(step.name, ()))
    return Step(step.name, step.will, step.why, made, all_of, _reckon(step.name, made, known))


def _reckon(name: str, made: Sequence[str] | None, known: Known) -> float | None:
    """The seconds that a stage will take: what its rehearsal took, else by its last run."""
    if name in known.seconds:
        return known.seconds[name]
    past = known.past.get(name)
    if past is None:
        return None
    if made is not None and past.made:
        usual = sum(past.made.values()) / len(past.made)
        return past.fixed + sum(past.made.get(period, usual) for period in made)
    return past.wall * known.sizes.get(name, 1.0) / past.size


def _list_reasons(node: Node, last: Entry | None, deps: Mapping[str, str | None]) -> list[str]:
    """Why a stage surely runs, in words: parameters that are other than in the last run, then files, then data."""
    if last is None:
        return ["it has not run here yet"]
    names = [one for key, value in node.params.items() for one in _differ(key, last.params.get(key), value)]
    names += [path for path, md5 in deps.items() if md5 is not None and last.deps.get(path) != md5]
    return [f"{_join(names)} changed"] if names else []


def _differ(key: str, before: Any, now: Any) -> list[str]:
    """The keys below one of params.yaml whose values differ."""
    if before == now:
        return []
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [key]
    names = [*now, *(name for name in before if name not in now)]
    return [found for name in names for found in _differ(f"{key}.{name}", before.get(name), now.get(name))]


def _join(names: Sequence[str]) -> str:
    shown = [*names[:SHOWN], *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if shown else ""
