"""A workspace of its own for each run: a folder with the code, this run's parameters and a DVC project.

It shares the checkout's cache. The checkout itself is never written to: what a run made is in the cache, from which
`dvc repro` in the checkout takes it.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tasks import log, params
from tasks.runtime import code, files, locks, project, store
from tasks.runtime.overrides import override_params

KEPT_MARK = ".kept"  # in a workspace that was left on purpose; one without it and without a living owner was killed
FAILURES_KEPT = 3  # workspaces of the newest failed runs
PATCH = ".dvc/tmp/uncommitted.patch"
FRESH_HOME = ".dvc/tmp/home"
LOCK = "dvc.lock"


@dataclass(frozen=True)
class Workspace:
    """Where a run works. `diff` is the patch from `commit` to the code that is here, when there is a difference."""

    root: Path
    commit: str
    diff: Path | None
    env: Mapping[str, str]


@contextlib.contextmanager
def open_workspace(
    checkout: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    commit: str | None = None,
    patch: Path | None = None,
    fresh: bool = False,
) -> Iterator[Workspace]:
    """A folder with the code as it is now, or at `commit` with `patch` on top, and params.yaml with the overrides.

    When the block ends the folder is removed; after an error it is kept, for somebody to look at.

    Args:
        fresh: with empty caches of its own: nothing made before is used, and nothing made here is used later.
    """
    checkout = checkout.resolve()
    shared = params.home(checkout)
    remove_abandoned(shared)
    root = shared / "workspaces" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with locks.own(root):
        workspace = _make_workspace(checkout, root, overrides=overrides or {}, commit=commit, patch=patch, fresh=fresh)
        try:
            yield workspace
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk: the next run removes it
                (root / KEPT_MARK).write_text(f"{type(error).__name__}: {error}\n")
                log.warning("the run failed; its workspace is kept for a look: %s", root)
            raise
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        shutil.rmtree(root)


def remove_abandoned(shared: Path, *, failures: int = FAILURES_KEPT) -> list[Path]:
    """Remove the workspaces that killed runs left, and those of failed runs but for the newest few."""
    abandoned = [root for root in list_workspaces(shared) if not locks.has_owner(root)]
    for lock in (shared / "workspaces").glob("*.lock"):
        locks.has_owner(lock.with_suffix(""))  # removes the lock of a run that was killed before it had a workspace
    failed = sorted((root for root in abandoned if (root / KEPT_MARK).exists()), key=lambda root: root.name)
    removable = set(abandoned) - set(failed[max(len(failed) - failures, 0) :])
    return [root for root in sorted(removable) if locks.remove_ownerless(root)]


def list_workspaces(shared: Path) -> list[Path]:
    return sorted(root for root in (shared / "workspaces").glob("*") if root.is_dir())


def keep_lock(space: Workspace) -> None:
    """Keep what a run's stages read and made. The next run begins with it, and DVC sees what has not changed since."""
    write = partial(shutil.copyfile, space.root / LOCK)
    files.publish(Path(space.env["EVERGREEN_HOME"]) / LOCK, write)


def _make_workspace(
    checkout: Path,
    root: Path,
    *,
    overrides: Mapping[str, Any],
    commit: str | None,
    patch: Path | None,
    fresh: bool,
) -> Workspace:
    with files.publish_folder(root, temporary=root.with_name(f".{root.name}")) as making:
        base, diff = code.copy_code(checkout, making, commit=commit, patch=patch)
        if overrides:
            override_params(making / "params.yaml", overrides)
        cache = root / ".dvc" / "cache" if fresh else project.find_cache(checkout)
        project.configure_project(checkout, making, cache=cache, site=root, remote=not fresh)
        if commit is None and not fresh and (lock := params.home(checkout) / LOCK).exists():
            shutil.copyfile(lock, making / LOCK)
        if diff:
            (making / PATCH).write_bytes(diff)
        if fresh:  # empty but for the key of the pseudonyms: without it the same sources give other bytes
            (making / FRESH_HOME).mkdir(parents=True)
            if (key := params.home(checkout) / "pii.key").exists():
                shutil.copy2(key, making / FRESH_HOME)
    # Where the programs find the shared state, and the checkout: a relative source may lie there, outside git.
    env = {
        "EVERGREEN_CHECKOUT": str(checkout),
        "EVERGREEN_HOME": str(root / FRESH_HOME if fresh else params.home(checkout)),
    }
    if fresh:
        env |= {"EVERGREEN_PERIODS": str(root / FRESH_HOME / "periods"), store.VARIABLE: "", locks.VARIABLE: ""}
    return Workspace(root, base, root / PATCH if diff else None, env)
