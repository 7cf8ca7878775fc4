"""keeper: the registry's champion and challenger, copied to where the API's processes read them. The only part that
talks to MLflow.

    python -m tasks.serving.keeper

One runs for all processes of an API, and ends with the process that began it, however that ends. Where the registry
does not answer, the copy stays as it is.
"""

import json
import logging
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from tasks import params, periods, registry, state
from tasks.params import Params
from tasks.registry import Registry, Version
from tasks.serving import live

log = logging.getLogger("evergreen")
LOOK = 0.5  # seconds between looks whether the parent lives
KEPT = 2  # versions: a process may still be loading the one before


def keep(known: Registry, home: Path) -> int | None:
    """Copy the champion and the challenger, where they are others than the copy's; the champion's number. Whole, or not
    at all. Without a challenger there is no copy of one; a champion's copy stays."""
    champion, challenger = known.champion(), known.challenger()
    if champion:
        _point(known, champion, home, live.POINTER)
    if challenger:
        _point(known, challenger, home, live.CHALLENGER)
    else:
        (live.folder(home) / live.CHALLENGER).unlink(missing_ok=True)
    return champion.number if champion else None


def _point(known: Registry, version: Version, home: Path, pointer: str) -> None:
    if version.number == live.served(home, pointer):
        return
    here = live.folder(home)
    if not (here / str(version.number)).is_dir():
        _copy(known, version, here)
    periods.publish_json(here / pointer, {"number": version.number})
    _forget(here, {live.served(home, each) for each in (live.POINTER, live.CHALLENGER)})


def _copy(known: Registry, version: Version, here: Path) -> None:
    here.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=here))
    for name in live.FILES:
        known.fetch(version, name, new)
    told = {"number": version.number, "as_of": version.as_of, "commit": version.commit, "tags": dict(version.tags)}
    (new / "version.json").write_text(json.dumps(told | known.card(version), default=str))
    new.rename(here / str(version.number))


def _forget(here: Path, serving: set[int | None]) -> None:
    old = sorted(
        (path for path in here.glob("[0-9]*") if int(path.name) not in serving), key=lambda path: int(path.name)
    )
    state.forget([*old[: max(len(old) - KEPT + 1, 0)], *here.glob(".new-*")])


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


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="serving: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is told to all in a terminal: who began it will end it
    parent, stop = os.getppid(), threading.Event()
    thread = threading.Thread(target=watch, args=[params.load(), params.home(), stop], daemon=True)
    thread.start()
    while os.getppid() == parent:
        time.sleep(LOOK)


if __name__ == "__main__":
    main()
