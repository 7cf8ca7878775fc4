"""registry_mirror: copies the registry's champion and challenger to a local folder. Serving's only user of MLflow.

Of a team's store it brings the published state into the home, too.

    python -m tasks.serving.registry_mirror --parent 1234

The API's processes read the copy (versions.py). One mirror runs for all of them. It ends with the process that started
it, however that ends. While the registry does not answer, the copy stays as it is.
"""

import argparse
import json
import logging
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

from tasks import log, params
from tasks.data import periods, state
from tasks.promotion import registry
from tasks.promotion.tags import NOTE
from tasks.runtime import files, store
from tasks.serving import versions

LOOK = 0.5  # seconds between looks whether the parent lives
POLL_S = 2.0  # between looks at the registry
KEPT = 2  # versions: a process may still be loading the one before
NEW = ".new-"  # begins the name of a copy that is not whole yet
LOOKED = "looked"  # touched at each look that found the registry, and the copy is as it says
Seen = dict[Path, object]  # of each copy that was found whole, how its files looked then


def copy_versions(source: registry.Registry, home: Path, seen: Seen | None = None) -> int | None:
    """Copy the champion and the challenger where the copy has others. A version is copied whole or not at all.

    Without a challenger its pointer is removed; without a champion the last one stays. A damaged copy is made anew.

    Args:
        seen: the copies that were found whole before; they are not read again while their files look the same.

    Returns:
        The champion's number.
    """
    seen = {} if seen is None else seen
    champion, challenger = source.find_champion(), source.find_challenger()
    if challenger is None or _read_pointer(home, versions.CHALLENGER) != _pointer(source, challenger):
        # First of all: a challenger that lost must not go on answering.
        (versions.folder(home) / versions.CHALLENGER).unlink(missing_ok=True)
    try:
        if champion:
            _publish(source, champion, home, versions.POINTER, seen=seen)
    finally:
        if challenger:
            _publish(source, challenger, home, versions.CHALLENGER, seen=seen)
    return champion.number if champion else None


def copy_age_s(home: Path) -> float | None:
    """Seconds since the last look at which all was well; None before the first."""
    try:
        return max(time.time() - (versions.folder(home) / LOOKED).stat().st_mtime, 0.0)
    except FileNotFoundError:
        return None


def _pointer(source: registry.Registry, version: registry.Version) -> versions.Pointer:
    return versions.Pointer(version.number, source.model, version.run_id)


def _read_pointer(home: Path, pointer: str) -> versions.Pointer | None:
    """One that cannot be read counts as none: it is written anew."""
    try:
        return versions.read_pointer(home, pointer)
    except (OSError, ValueError) as error:
        log.warning("%s", error)
        return None


def _publish(source: registry.Registry, version: registry.Version, home: Path, pointer: str, *, seen: Seen) -> None:
    """Copy the version and let the pointer name it, each only where it is not so yet."""
    folder, wanted = versions.folder(home), _pointer(source, version)
    if not _is_whole(folder / str(version.number), wanted, seen):
        _copy(source, version, folder / str(version.number))
    if wanted != _read_pointer(home, pointer):
        files.publish_json(folder / pointer, asdict(wanted))
        both = [_read_pointer(home, name) for name in (versions.POINTER, versions.CHALLENGER)]
        _remove_old(folder, {serving.number for serving in both if serving})


def _is_whole(copy: Path, wanted: versions.Pointer, seen: Seen) -> bool:
    """Whether it is of this run, with the files that were copied."""
    try:
        statuses = [(copy / name).stat() for name in (*versions.FILES, "version.json")]
        stamp = (wanted, [(status.st_size, status.st_mtime_ns, status.st_ino) for status in statuses])
        if seen.get(copy) == stamp:
            return True
        card = versions.read_card(copy)
    except OSError:  # it is not there, or the disk cannot read it
        return False
    except ValueError as error:
        log.warning("version %d is copied anew: %s", wanted.number, error)
        return False
    is_hashed = set(versions.FILES) <= set(card.get("files", {}))
    if (card.get("model"), card.get("run_id")) != (wanted.model, wanted.run_id) or not is_hashed:
        return False
    seen[copy] = stamp
    return True


def _copy(source: registry.Registry, version: registry.Version, target: Path) -> None:
    """On the disk before it has its name. What had the name goes: another model's, or one that is not whole."""
    with files.publish_folder(target, prefix=NEW) as copy:
        for name in versions.FILES:
            source.runs.fetch(version.run_id, name, copy)
        data = source.runs.read_data(version.run_id)
        card = {
            "number": version.number,
            "as_of": version.as_of,
            "commit": version.commit,
            "tags": dict(version.tags),
            "metrics": dict(data.metrics),
            "card": data.tags.get(NOTE, ""),
            "model": source.model,
            "run_id": version.run_id,
            "files": {name: periods.hash_file(copy / name) for name in versions.FILES},
        }
        (copy / "version.json").write_text(json.dumps(card, default=str), encoding="utf-8")
        for path in (*copy.iterdir(), copy):
            files.sync(path)
        files.discard_folder(target)


def _remove_old(folder: Path, serving: set[int]) -> None:
    copies = [path for path in folder.iterdir() if path.name.isdecimal() and int(path.name) not in serving]
    old = sorted(copies, key=lambda path: int(path.name))
    state.remove_folders([*old[: max(len(old) - KEPT + 1, 0)], *folder.glob(f"{NEW}*"), *folder.glob(".gone-*")])


def watch(p: params.Params, home: Path, stop: threading.Event) -> None:
    """Copy the versions, and the state of a team, every POLL_S, until `stop` is set."""
    if store.find_store():  # in a thread of its own: neither waits while the other's server is away
        threading.Thread(target=_watch_state, args=[home, stop], name="state", daemon=True).start()
    source: registry.Registry | None = None
    last_error: type[Exception] | None = None
    seen: Seen = {}
    while not stop.is_set():
        try:
            source = source or registry.open_registry(p.registry)
            copy_versions(source, home, seen)
            versions.folder(home).mkdir(parents=True, exist_ok=True)
            (versions.folder(home) / LOOKED).touch()
            last_error = None
        except Exception as error:  # whatever it is, what serves must go on
            if type(error) is not last_error:
                log.warning("the registry's versions cannot be copied, so the last ones serve on: %s", error)
            source, last_error = None, type(error)
        stop.wait(POLL_S)


def _watch_state(home: Path, stop: threading.Event) -> None:
    last_error: type[Exception] | None = None
    while not stop.is_set():
        try:
            state.fetch(home)
            last_error = None
        except Exception as error:  # whatever it is, what serves must go on
            if type(error) is not last_error:
                log.warning("the state cannot be fetched, so the last one serves on: %s", error)
            last_error = type(error)
        stop.wait(POLL_S)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="serving: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is told to all in a terminal: who began it will end it
    parser = argparse.ArgumentParser(prog="python -m tasks.serving.registry_mirror", description=__doc__)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="the process id to end with")
    parent, stop = parser.parse_args().parent, threading.Event()
    thread = threading.Thread(target=watch, args=[params.load(), params.home(), stop], daemon=True)
    thread.start()
    while os.getppid() == parent and thread.is_alive():  # without it, whoever began this begins another
        time.sleep(LOOK)
    os._exit(1)  # a copy under way, or a client's own thread, would hold up a plain end


if __name__ == "__main__":
    main()
