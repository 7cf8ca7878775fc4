"""The DVC remote, such as s3://bucket/path: what stages made goes there, and comes from there to other machines.

With a stage's outputs goes DVC's note of the run: which inputs gave these outputs. A machine that has the same inputs
finds the note, and takes the outputs instead of making them. DVC itself copies all notes whenever it is asked for one,
which takes longer with every run; here those of one stage travel.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks import log
from tasks.runtime.project import collect_errors, enter_project, find_remote


class RemoteFailed(RuntimeError):  # noqa: N818 (the name says what happened)
    """The remote could not be asked, or did not take or give what it should."""


def push_outputs(root: Path, stage: str | None = None) -> int:
    """Bring what a stage made, or all stages of dvc.lock, to the remote, with the notes of their runs.

    What the remote has is not sent again.

    Returns:
        How many files were sent.

    Raises:
        RemoteFailed: Some were not. Asked again, it sends what is missing.
    """
    with _name_remote(root, "take the outputs"), enter_project(root) as repo:
        sent = int(repo.push([stage] if stage else None))
        notes = _find_notes(repo)
        names = [stage] if stage else [made.addressing for made in repo.index.stages]
        return sent + sum(_copy_notes(key, repo.cache.legacy, notes) for key in _list_keys(repo, names))


def pull_outputs(root: Path) -> None:
    """Bring what dvc.lock names into DVC's cache, as far as it is not there, and into `root`.

    Raises:
        RemoteFailed: Neither the cache nor the remote has it, or the remote could not be asked.
        ValueError: The cache lacks some of it, and the project has no remote.
    """
    with _name_remote(root, "give the outputs"), enter_project(root) as repo:
        named = [made.addressing for made in repo.index.stages if all(out.hash_info for out in made.outs)]
        if find_remote(root):
            repo.fetch(named)
        repo.checkout(named, force=True)


def look_at_remote(repo: Any) -> None:
    """Have DVC take from the remote what it lacks of the stage that is about to run: notes first, then outputs.

    A remote that cannot be asked has nothing: the stage runs.
    """
    from dvc.exceptions import CheckoutError, CollectCacheError
    from dvc.stage.cache import _get_stage_hash

    memory, load, pull_objects, pull = repo.stage_cache, repo.stage_cache._load, repo.cloud.pull, repo.pull

    def load_note(stage: Any) -> Any:
        if note := load(stage):
            return note
        try:
            fetched = _copy_notes(_get_stage_hash(stage), _find_notes(repo), repo.cache.legacy)
        except Exception as error:
            _warn(error)
            return None
        return load(stage) if fetched else None

    def pull_noted(objects: Any, **options: Any) -> Any:
        try:
            with collect_errors("dvc_data"):
                return pull_objects(objects, **options)
        except Exception as error:
            _warn(error)
            raise CollectCacheError(str(error)) from error

    def pull_stage(target: str, **options: Any) -> Any:
        try:
            with collect_errors("dvc_data"):
                return pull(target, **options)
        except CheckoutError:
            raise
        except Exception as error:
            _warn(error)
            raise CheckoutError([target], None) from error

    memory._load, memory.pull = load_note, lambda _remote: None
    repo.cloud.pull, repo.pull = pull_noted, pull_stage


def _warn(error: Exception) -> None:
    log.warning("the DVC remote cannot be asked, so what it may have is made here: %s", error)


def _find_notes(repo: Any) -> Any:
    return repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")


def _list_keys(repo: Any, names: list[str]) -> Iterator[str]:
    """Of the notes of these stages' last runs, as far as they have one."""
    from dvc.stage.cache import _can_hash, _get_stage_hash

    for name in names:
        made = repo.stage.load_one(name=name)
        if _can_hash(made):
            yield _get_stage_hash(made)


def _copy_notes(key: str, source: Any, target: Any) -> int:
    """Copy the notes of one stage's run, by whose key DVC files them. Returns how many were copied."""
    from dvc_objects.fs import generic

    here, there = (store.fs.join(store.path, "runs", key[:2], key) for store in (source, target))
    if not source.fs.exists(here):
        return 0
    names = [source.fs.name(path) for path in source.fs.find(here)]
    missing = [name for name in names if not target.fs.exists(target.fs.join(there, name))]
    for name in missing:
        generic.copy(source.fs, source.fs.join(here, name), target.fs, target.fs.join(there, name))
    return len(missing)


@contextlib.contextmanager
def _name_remote(root: Path, what: str) -> Iterator[None]:
    """Errors of DVC and of the network in our words."""
    from dvc.exceptions import CheckoutError

    address = find_remote(root)
    try:
        yield
    except CheckoutError as error:
        lacking = ", ".join(sorted(map(str, error.target_infos)))
        if address is None:
            raise ValueError(
                f"DVC's cache lacks {lacking}, and no remote is set to take it from. Set one with "
                "`dvc remote add -d storage s3://bucket/path`."
            ) from None
        raise RemoteFailed(f"neither DVC's cache nor its remote {address} has {lacking}") from None
    except Exception as error:  # each kind of remote has errors of its own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise RemoteFailed(f"the DVC remote {address} did not {what}: {type(cause).__name__}: {cause}") from None
