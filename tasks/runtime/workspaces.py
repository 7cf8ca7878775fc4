"""A workspace of its own for each run: a folder with the code, this run's parameters and a DVC project.

It shares the checkout's cache. The checkout itself is never written to: what a run made is in the cache, from which
`dvc repro` in the checkout takes it.
"""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks import log
from tasks.params import home
from tasks.runtime.code import copy_code
from tasks.runtime.overrides import override_params
from tasks.runtime.pipeline import configure_project, find_cache

KEPT = ".kept"  # in a workspace that was left on purpose; one without it and without a living owner was killed
PATCH = ".dvc/tmp/uncommitted.patch"
OWN_HOME = ".dvc/tmp/home"


@dataclass(frozen=True)
class Workspace:
    """Where a run works. `diff` is the patch from `commit` to the code that is here, when there is a difference."""

    root: Path
    commit: str
    diff: Path | None
    env: Mapping[str, str]

    @property
    def dirty(self) -> bool:
        return self.diff is not None


@contextlib.contextmanager
def open_workspace(
    checkout: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    commit: str | None = None,
    patch: Path | None = None,
    fresh: bool = False,
    keep: bool = False,
) -> Iterator[Workspace]:
    """A folder with the code as it is now, or at `commit` with `patch` on top, and params.yaml with the overrides.

    `fresh` gives it empty caches of its own: nothing made before is used, and nothing made here is used later. When
    the block ends the workspace goes, except with `keep`, or after an error, for somebody to look at.
    """
    checkout = checkout.resolve()
    folder = home(checkout) / "workspaces"
    remove_abandoned(home(checkout))
    with _owned(folder) as root:
        made = _make(checkout, root, overrides=overrides or {}, commit=commit, patch=patch, fresh=fresh)
        try:
            yield made
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk: then the next run takes it away
                (root / KEPT).write_text(f"{type(error).__name__}: {error}\n")
                log.warning("the run failed; its workspace is kept for a look: %s", root)
            raise
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        (root / KEPT).write_text("") if keep else shutil.rmtree(root)


def remove_abandoned(shared: Path, *, failures: int = 3) -> list[Path]:
    """Remove the workspaces that killed runs left, and those of failed runs but for the newest few."""
    dead = [root for root in list_workspaces(shared) if not has_owner(root)]
    for path in (shared / "workspaces").glob("*.lock"):
        has_owner(path.with_suffix(""))  # of a run that was killed before it had a workspace: takes the file away
    kept = sorted((root for root in dead if (root / KEPT).exists()), key=lambda root: root.name, reverse=True)
    return [root for root in dead if root not in kept[:failures] and remove_if_dead(root)]


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[Path]:
    """A new workspace's path, whose lock lives as long as this process: so a killed run is told from a running one."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    lock = _lock_of(root)
    with lock:
        try:
            yield root
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


def _lock_of(root: Path) -> FileLock:
    return FileLock(root.with_name(f"{root.name.removeprefix('.')}.lock"), thread_local=False)


def list_workspaces(shared: Path) -> list[Path]:
    return sorted(root for root in (shared / "workspaces").glob("*") if root.is_dir())


def has_owner(root: Path) -> bool:
    return not _if_dead(root, lambda: None)


def remove_if_dead(root: Path) -> bool:
    return _if_dead(root, lambda: shutil.rmtree(root, ignore_errors=True))


def _if_dead(root: Path, act: Callable[[], None]) -> bool:
    """Act while nobody can own it, and say whether that was so."""
    lock = _lock_of(root)
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        act()
        Path(lock.lock_file).unlink(missing_ok=True)
        return True
    return False


def _make(
    checkout: Path,
    root: Path,
    *,
    overrides: Mapping[str, Any],
    commit: str | None,
    patch: Path | None,
    fresh: bool,
) -> Workspace:
    """Made under another name and renamed last: a workspace that exists is whole."""
    making = root.with_name(f".{root.name}")
    making.mkdir()
    try:
        base, diff = copy_code(checkout, making, commit=commit, patch=patch)
        if overrides:
            override_params(making / "params.yaml", overrides)
        configure_project(checkout, making, cache=root / ".dvc" / "cache" if fresh else find_cache(checkout), site=root)
        if diff:
            (making / PATCH).write_bytes(diff)
        if fresh:
            _own_home(checkout, making)
        making.rename(root)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return Workspace(root, base, root / PATCH if diff else None, _env(checkout, root, fresh=fresh))


def _env(checkout: Path, root: Path, *, fresh: bool) -> dict[str, str]:
    """What the stages' programs are told: where the shared state is, which a fresh workspace has to itself.

    And where the checkout is: a source with a relative address may lie there, outside git.
    """
    told = {"EVERGREEN_CHECKOUT": str(checkout)}
    if not fresh:
        return {**told, "EVERGREEN_HOME": str(home(checkout))}
    own = root / OWN_HOME
    return {**told, "EVERGREEN_HOME": str(own), "EVERGREEN_PERIODS": str(own / "periods")}


def _own_home(checkout: Path, making: Path) -> None:
    """Empty but for the key of the pseudonyms: without it the same sources give other bytes."""
    (making / OWN_HOME).mkdir(parents=True)
    if (key := home(checkout) / "pii.key").exists():
        shutil.copy2(key, making / OWN_HOME)
