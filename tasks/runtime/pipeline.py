"""The stages of dvc.yaml listed and run, and the files of DVC's cache.

Whether a run should happen and what its results mean is decided elsewhere.
"""

import contextlib
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tasks import log
from tasks.params import yamltext
from tasks.runtime import cost
from tasks.runtime.program import Program
from tasks.runtime.project import collect_errors, enter_project, find_remote
from tasks.runtime.remote import look_at_remote


@dataclass(frozen=True)
class StageRun:
    """ran: its program ran. cached: its outputs came from an earlier run. unchanged: they were there already.

    Attributes:
        cpu: seconds, user and system, with the program's threads and children; 0 where it did not run.
        wall: seconds, DVC's own work included.
    """

    name: str
    status: Literal["ran", "cached", "unchanged"]
    cpu: float
    wall: float


class StageFailed(RuntimeError):  # noqa: N818 (the name says what happened)
    """A stage's program failed, with its last lines; or DVC could not run it or keep its outputs."""


def list_stages(root: Path) -> dict[str, tuple[str, ...]]:
    """The stages of dvc.yaml and those that each needs. A stage comes after those, else in the file's order."""
    with enter_project(root) as repo:
        graph = repo.index.graph  # its edges point from a stage to what it needs
        needs = {
            stage.addressing: tuple(sorted(needed.addressing for needed in graph.successors(stage)))
            for stage in repo.index.stages
        }
    ordered: dict[str, tuple[str, ...]] = {}
    while left := [name for name in needs if name not in ordered]:  # DVC has refused a circle
        name = next(name for name in left if ordered.keys() >= set(needs[name]))
        ordered[name] = needs[name]
    return ordered


def read_lock(root: Path) -> dict[str, Any]:
    """dvc.lock as data: each stage's command, parameters, and the hashes of what it read and made."""
    path = root / "dvc.lock"
    return dict(yamltext.load_plain(path.read_text()) or {}) if path.exists() else {}


def _read_stages(root: Path) -> dict[str, Any]:
    """The entries of dvc.lock by stage, with the values that DVC reads there."""
    from dvc.utils.serialize import load_yaml

    path = root / "dvc.lock"
    return dict(load_yaml(str(path)).get("stages", {})) if path.exists() else {}


# --- a stage -------------------------------------------------------------------------------------------------------


def run_stage(
    root: Path,
    name: str,
    *,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    force: bool = False,
) -> StageRun:
    """Have DVC run one stage, or find that it need not. What its program took is noted (cost), also where it failed.

    One stage at a time in a process: DVC needs the project's folder as its working directory.

    Args:
        env: added to the program's environment.
        on_line: gets each line of the program's output at once.
        force: run the program though nothing has changed.

    Raises:
        StageFailed: the program failed, or DVC could not keep its outputs.
    """
    program, started = Program(name, on_line), time.monotonic()
    # The stages' `python` is the one that runs this process, and its output is not buffered.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    run_env = {"PATH": path, "PYTHONUNBUFFERED": "1", **(env or {})}
    try:
        changed = _reproduce(root, name, program, env=run_env, force=force)
    finally:
        if program.ran:  # of a program that was killed, only its parent knows
            cost.note(root, name, program.cpu)
    status: Literal["ran", "cached", "unchanged"] = "ran" if program.ran else "cached" if changed else "unchanged"
    return StageRun(name, status, program.cpu, time.monotonic() - started)


def _reproduce(root: Path, name: str, program: "Program", *, env: Mapping[str, str], force: bool) -> bool:
    from dvc.exceptions import DvcException

    clone_apart()
    keep_same_lock()
    with collect_errors("dvc_data") as errors:
        try:
            with enter_project(root) as repo, _run_with(program):
                _check_content(repo.cache.local, stage=name)
                if has_remote := find_remote(root) is not None:
                    look_at_remote(repo)
                changed = repo.reproduce(name, single_item=True, force=force, run_env=dict(env), pull=has_remote)
        except DvcException as error:
            log.debug("DVC's own account", exc_info=True)
            raise StageFailed(f"{name}: {program.failure or _explain(error)}") from None
    if errors:  # DVC logs that a file could not be copied into the cache, and ends as if it had been
        raise StageFailed(f"{name}: DVC could not keep {len(errors)} files of its outputs: {_explain(errors[0])}")
    return bool(changed)


def settle_stages(root: Path, names: Sequence[str]) -> dict[str, StageRun]:
    """Put in place what the stages made of which nothing has changed since dvc.lock was written. DVC is asked once for
    all of them, which takes a fraction of what `run_stage` takes for each.

    Args:
        names: In the order of `list_stages`, each after those that it needs.

    Returns:
        Those that were unchanged, up to the first that was not, or of whose outputs the cache lacks a sound copy. The
        others are for `run_stage`.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import lock_repo

    settled: dict[str, StageRun] = {}
    if not names or not (root / "dvc.lock").exists():
        return settled
    clone_apart()
    try:
        with collect_errors("dvc_data"), enter_project(root) as repo, lock_repo(repo):
            _check_content(repo.cache.local, stage="what has not changed")
            stages, lock = {stage.addressing: stage for stage in repo.index.stages}, _read_stages(root)
            for name in names:
                started = time.monotonic()
                if not _settle(stages[name], lock.get(name)):
                    break
                settled[name] = StageRun(name, "unchanged", 0.0, time.monotonic() - started)
    except DvcException:
        log.debug("DVC's own account of what it could not put in place", exc_info=True)
    return settled


def _settle(stage: Any, entry: Any) -> bool:
    """Put a stage's outputs in place if it would get the very entry that dvc.lock has. Returns whether that was so."""
    from dvc.stage.serialize import to_lockfile

    if stage.always_changed or to_lockfile(stage)[stage.name] != entry:  # a dependency or an output less, say
        return False
    if stage.changed_stage() or stage.changed_deps() or not stage.outs_cached():
        return False
    stage.checkout()
    return True


def _explain(error: BaseException) -> str:
    """The innermost cause, since DVC wraps it in 'failed to reproduce ...'."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _run_with(program: "Program") -> Iterator[None]:
    """Have DVC run commands with `program`: its own function neither reads their lines nor ends them with us."""
    import dvc.stage.run as dvc_run
    from dvc.stage.exceptions import StageCmdFailedError

    def run(executable: str, command: str, **popen: Any) -> None:
        if status := program.run(executable, command, **popen):
            raise StageCmdFailedError(command, status)

    original, dvc_run._run = dvc_run._run, run
    try:
        yield
    finally:
        dvc_run._run = original


# --- the files of the cache ----------------------------------------------------------------------------------------


def _check_content(store: Any, *, stage: str) -> None:
    """Have DVC's object store (a `LocalHashFileDB`) check each object by content before DVC gives it back or keeps it.

    DVC trusts a cached file that is read-only. Root, a disk that loses bits and `chmod` change such files all the same.
    So every file that a stage's run asks for is hashed once (0.7 GB/s), and one with other bytes is removed and named
    in the log. DVC then finds that it lacks an output of the stage, and the stage runs again. A bare `dvc repro` is not
    checked.
    """
    sound: dict[Path, tuple[int, ...]] = {}
    check, get = store.check, store.get

    def remove_damaged(oid: str) -> None:
        path = Path(store.oid_to_path(oid))
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            look = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if sound.get(path) == look:
                return
            with path.open("rb") as stream:
                md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if md5 == oid.removesuffix(".dir"):
                sound[path] = look
                return
            path.unlink(missing_ok=True)
            log.warning(
                "%s: DVC's cache held other bytes than dvc.lock names (%s). The file is removed, and what it was an "
                "output of is made again.",
                stage,
                path,
            )

    def checked(oid: str, *args: Any, **kwargs: Any) -> Any:
        remove_damaged(oid)
        return check(oid, *args, **kwargs)

    def got(oid: str) -> Any:
        if oid.endswith(".dir"):  # DVC reads the listing of a folder before it asks whether that is sound
            remove_damaged(oid)
        return get(oid)

    store.check, store.get = checked, got


@cache
def clone_apart() -> None:
    """Have DVC clone a file under another name first.

    On Linux it opens its target and empties it before it asks whether the disk can clone. Where another run has just
    put the same object there, that empties the object, and the files of that run that are links to it.
    """
    from dvc_objects.fs import system

    reflink: Callable[[str, str], None] = system.reflink

    def clone(source: str, target: str) -> None:
        temporary = f"{target}.{uuid.uuid4().hex}"
        try:
            reflink(source, temporary)
            os.link(temporary, target)  # FileExistsError where another run was first
        finally:
            Path(temporary).unlink(missing_ok=True)

    system.reflink = clone


@cache
def keep_same_lock() -> None:
    """Have DVC leave dvc.lock as it is where it holds already what would be written. DVC reads it with every comment
    and writes it anew, which takes longer than all other work for a stage whose outputs come from the cache."""
    from dvc.dvcfile import Lockfile
    from dvc.stage.serialize import to_lockfile

    write: Callable[..., None] = Lockfile.dump_stages

    def write_changes(lockfile: Any, stages: Sequence[Any], **options: Any) -> None:
        written = _read_stages(Path(lockfile.path).parent)
        changed = [one for one in stages if written.get(one.name) != to_lockfile(one, **options)[one.name]]
        write(lockfile, changed, **options)

    Lockfile.dump_stages = write_changes
