"""looks: the champion compared with another version, its predecessor or a challenger, when a look is due.

Each look spends some of the champion's error budget, so there is one in each monitor.window, however often the monitor
runs. Both need more than a window: all rows that are mature and that neither version has seen.
"""

from collections.abc import Sequence
from datetime import datetime

from tasks.monitoring import canary, predecessor
from tasks.monitoring.schedule import is_look_due, list_looks
from tasks.monitoring.signal import Signal
from tasks.monitoring.watched import Watched
from tasks.promotion.registry import Registry
from tasks.serving.journal import Journal


def take_looks(
    watched: Watched, before: Sequence[Signal], *, journal: Journal, registry: Registry, as_of: datetime
) -> list[Signal]:
    """The looks that are due.

    Args:
        before: The signals so far, without those of a clock that was ahead.
    """
    p, champion = watched.p, watched.version
    looks: list[Signal | None] = []
    if is_look_due(before, champion.number, as_of=as_of, window=p.monitor.window, kind="predecessor"):
        count = len(list_looks(before, champion.number, kind="predecessor"))
        looks.append(
            predecessor.compare(p, journal=journal, registry=registry, champion=champion, as_of=as_of, looks=count)
        )
    begun = registry.find_canary()
    if begun and is_look_due(before, champion.number, as_of=as_of, window=p.monitor.window, kind="challenger"):
        count = len(list_looks(before, champion.number, kind="challenger"))
        looks.append(
            canary.compare(
                p, journal=journal, registry=registry, champion=champion, begun=begun, as_of=as_of, looks=count
            )
        )
    return [look for look in looks if look is not None]
