"""keeper: the registry's champion, copied to where the API's processes read it. The only part that talks to MLflow.

One runs for all processes of an API. Where the registry does not answer, the copy stays as it is.
"""

import json
import logging
import shutil
import tempfile
import threading
from pathlib import Path

from tasks import periods, registry
from tasks.params import Params
from tasks.registry import Registry, Version
from tasks.serving import live

log = logging.getLogger("evergreen")
KEPT = 2  # versions: a process may still be loading the one before


def keep(known: Registry, home: Path) -> int | None:
    """Copy the champion, if it is another than the copy's; its number. Whole, or not at all."""
    champion = known.champion()
    if champion is None or champion.number == live.served(home):
        return champion.number if champion else None
    here = live.folder(home)
    if not (here / str(champion.number)).is_dir():
        _copy(known, champion, here)
    periods.publish_json(here / live.POINTER, {"number": champion.number})
    _forget(here, champion.number)
    return champion.number


def _copy(known: Registry, champion: Version, here: Path) -> None:
    here.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=here))
    for name in live.FILES:
        known.fetch(champion, name, new)
    told = {"number": champion.number, "as_of": champion.as_of, "commit": champion.commit, "tags": dict(champion.tags)}
    (new / "version.json").write_text(json.dumps(told, default=str))
    new.rename(here / str(champion.number))


def _forget(here: Path, serving: int) -> None:
    old = sorted((path for path in here.glob("[0-9]*") if path.name != str(serving)), key=lambda path: int(path.name))
    for path in [*old[: max(len(old) - KEPT + 1, 0)], *here.glob(".new-*")]:
        shutil.rmtree(path, ignore_errors=True)


def watch(p: Params, home: Path, stop: threading.Event) -> None:
    """Every serving.watch, until somebody says stop."""
    known, away = None, False
    while not stop.is_set():
        try:
            known = known or registry.open_registry(p.registry)
            keep(known, home)
            away = False
        except Exception as error:  # whatever it is, what serves must go on
            if not away:
                log.warning("the registry cannot be asked, so the last champion serves on: %s", error)
            known, away = None, True
        stop.wait(p.serving.watch.total_seconds())
