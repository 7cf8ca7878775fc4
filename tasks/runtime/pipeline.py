"""A workspace of its own for one run, and DVC's stages listed and run in it; the only importer of dvc.

A workspace is a folder with the code as it is (or as it was at a commit), this run's parameters and a DVC project that
shares the checkout's cache. The checkout itself is never written to: what a run made is in the cache, from which
`dvc repro` in the checkout takes it. Whether a run should happen and what its results mean is decided elsewhere.
"""

import contextlib
import contextvars
import difflib
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from filelock import FileLock, Timeout

from tasks import log, yamltext
from tasks.params import Params, Section, home
from tasks.runtime import objects

UNKNOWN = "unknown"  # the commit of a run that was made without git, or before the first commit
KEPT = ".kept"  # in a workspace that was left on purpose; one without it and without a living owner was killed
PATCH = ".dvc/tmp/uncommitted.patch"
OWN_HOME = ".dvc/tmp/home"
LEFT_OUT = ("data", "models", "reports", ".git", ".venv", ".evergreen")  # where no git says what the code is
NOT_CODE = (".dvc/cache/", ".dvc/tmp/", ".dvc/config.local")
CODE = (".py", ".sql", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".json")  # what git does not know, travels if it is so
CODE_SIZE = 1_000_000  # bytes; beyond it even a .json is data
LOCKED = "requirements.lock"  # the environment's; of no such suffix, and a run before the first commit needs it
SECRETS = ".env"  # a name that begins so is no code
# Whatever the user's git is set to: the patch must apply anywhere, and be the same bytes for the same edits.
PLAIN = (
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--unified=3",
    "--full-index",
    "--binary",
)
TAIL = 200  # lines of a stage that are held for its error
PROGRESS = 15.0  # seconds between two lines of progress where there is no terminal to draw a bar on


_one_stage = threading.Lock()  # the working directory belongs to the whole process, and DVC needs it to be the root


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


@dataclass(frozen=True)
class StageInfo:
    name: str
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class StageRun:
    """ran: its program ran. cached: its outputs came from an earlier run. unchanged: they were there already."""

    name: str
    status: Literal["ran", "cached", "unchanged"]
    cpu: float
    wall: float


class StageFailed(RuntimeError):  # noqa: N818 (it says what happened)
    """A stage's program failed, with the last it said; or DVC could not run it or keep its outputs."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage
        self.message = message


# --- a workspace ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def workspace(
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
    sweep(home(checkout))
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


def sweep(shared: Path, *, failures: int = 3) -> list[Path]:
    """Remove the workspaces that killed runs left, and those of failed runs but for the newest few."""
    dead = [root for root in workspaces(shared) if not lives(root)]
    for path in (shared / "workspaces").glob("*.lock"):
        lives(path.with_suffix(""))  # of a run that was killed before it had a workspace: takes the file away
    kept = sorted((root for root in dead if (root / KEPT).exists()), key=lambda root: root.name, reverse=True)
    return [root for root in dead if root not in kept[:failures] and remove_dead(root)]


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


def workspaces(shared: Path) -> list[Path]:
    return sorted(root for root in (shared / "workspaces").glob("*") if root.is_dir())


def lives(root: Path) -> bool:
    return not _if_dead(root, lambda: None)


def remove_dead(root: Path) -> bool:
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
        base, diff = _code(checkout, making, commit=commit, patch=patch)
        if overrides:
            override(making / "params.yaml", overrides)
        _configure(checkout, making, cache=root / ".dvc" / "cache" if fresh else cache_of(checkout), site=root)
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


# --- its code ------------------------------------------------------------------------------------------------------


def _code(checkout: Path, root: Path, *, commit: str | None, patch: Path | None) -> tuple[str, bytes]:
    """Fill `root` with the code; the commit that it stands on, and the patch from there."""
    if commit is not None:
        return _code_of_commit(checkout, root, commit=commit, patch=patch)
    if not _in_git(checkout):
        _copy_tree(checkout, root)
        return UNKNOWN, b""
    base, diff = _snapshot(checkout, root)
    if (lock := checkout / "dvc.lock").exists() and not (root / "dvc.lock").exists():
        shutil.copyfile(lock, root / "dvc.lock")
    return base, diff


def _code_of_commit(checkout: Path, root: Path, *, commit: str, patch: Path | None) -> tuple[str, bytes]:
    if commit == UNKNOWN and patch is None:
        raise ValueError("the code of a run without a commit and without a patch is not known: it was made without git")
    if commit != UNKNOWN:
        commit = _git(checkout, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()
        _unpack(checkout, root, tree=commit)
    if patch is None:
        return commit, b""
    # The ceiling: a workspace lies inside the checkout, and git would take the checkout's paths for the patch's.
    _git(root, "apply", "--whitespace=nowarn", str(patch.resolve()), env={"GIT_CEILING_DIRECTORIES": str(root.parent)})
    return commit, patch.read_bytes()


def _in_git(checkout: Path) -> bool:
    if shutil.which("git") is None:
        return False
    asked = subprocess.run(["git", "check-ignore", "-q", "dvc.yaml"], cwd=checkout, env=_git_env(), capture_output=True)
    if asked.returncode == 128 and (checkout / ".git").exists():
        raise ValueError(f"git cannot read {checkout}: {asked.stderr.decode(errors='replace').strip()}")
    return asked.returncode == 1  # 0: a repository around the checkout, which ignores it


def code_of(checkout: Path) -> tuple[str, bytes]:
    """The commit that the checkout's code stands on, and the patch from there; empty where nothing was edited.

    The same that a workspace of it would tell, so that a run by `dvc repro` and one by a flow have one lineage.
    """
    checkout = checkout.resolve()
    if not _in_git(checkout):
        return UNKNOWN, b""
    with _tree(checkout) as (tree, env):
        return _since_head(checkout, tree, env)


def _snapshot(checkout: Path, root: Path) -> tuple[str, bytes]:
    """Fill `root` with the files as they are, and say what they are."""
    with _tree(checkout) as (tree, env):
        _unpack(checkout, root, tree=tree, env=env)
        return _since_head(checkout, tree, env)


@contextlib.contextmanager
def _tree(checkout: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The code as it is as a tree of git, by an index and objects of our own, which the environment names."""
    with tempfile.TemporaryDirectory() as scratch:
        env = _own_index(checkout, Path(scratch))
        _git(checkout, "update-index", "--add", "--remove", "-z", "--stdin", env=env, stdin=_listed(checkout))
        yield _git(checkout, "write-tree", env=env).decode().strip(), env


def _since_head(checkout: Path, tree: str, env: Mapping[str, str]) -> tuple[str, bytes]:
    head = _head(checkout)
    base = head or _git(checkout, "hash-object", "-t", "tree", os.devnull).decode().strip()
    only = ["--relative", "--", ".", ":(exclude)dvc.lock"]  # the lock says what was made, not what makes it
    return head or UNKNOWN, _git(checkout, "diff", *PLAIN, base, tree, *only, env=env)


def _listed(checkout: Path) -> bytes:
    """The names of the files that make up the code, each ended by a NUL: all that git tracks, and new code."""
    new = _names_in_git(checkout, "--others", "--exclude-standard")
    code = [name for name in new if _is_code(checkout / name, Path(name))]
    _tell_of_data([name for name in new if name not in code and name != "dvc.lock"])
    return "".join(f"{name}\0" for name in [*_names_in_git(checkout, "--cached"), *code]).encode(
        errors="surrogateescape"
    )


def _names_in_git(checkout: Path, *which: str) -> list[str]:
    names = _git(checkout, "ls-files", *which, "-z").decode(errors="surrogateescape").split("\0")[:-1]
    foreign = tuple(_foreign(checkout))
    return [name for name in names if not name.endswith("/") and not name.startswith(foreign)]  # "/": a nested clone


def _is_code(path: Path, name: Path) -> bool:
    """Whether a file that git does not know is code. Else it may be a table of people, or a password."""
    if any(part.startswith(SECRETS) for part in name.parts):
        return False
    if name.suffix.lower() not in CODE and name.name != LOCKED:
        return False
    return path.is_symlink() or (path.is_file() and path.stat().st_size <= CODE_SIZE)


def _tell_of_data(names: list[str]) -> None:
    if names:
        log.warning(
            "%d files that git does not track are no code and are left out of the run and of its patch (%s%s). Data "
            "belongs outside the checkout or under an ignored path; what the code needs beside it, `git add` brings in",
            len(names),
            ", ".join(names[:3]),
            ", ..." if names[3:] else "",
        )


def _own_index(checkout: Path, scratch: Path) -> dict[str, str]:
    """So that neither the user's index nor the repository's objects are touched."""
    index, objects = (
        checkout / _git(checkout, "rev-parse", "--git-path", name).decode().strip() for name in ("index", "objects")
    )
    if index.exists():
        shutil.copy2(index, scratch / "index")  # its time tells git which edits may hide in the second it was written
    (scratch / "objects").mkdir()
    return {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects.resolve()),
    }


def _foreign(checkout: Path) -> list[str]:
    """Paths in the checkout that are not its code even where no .gitignore says so."""
    shared = home(checkout)
    return [*NOT_CODE, *([f"{shared.relative_to(checkout)}/"] if shared.is_relative_to(checkout) else [])]


def _head(checkout: Path) -> str | None:
    asked = subprocess.run(
        ["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=checkout, env=_git_env(), capture_output=True, text=True
    )
    return asked.stdout.strip() or None


def _unpack(checkout: Path, root: Path, *, tree: str, env: Mapping[str, str] | None = None) -> None:
    """Fill `root` with every file of a tree. By a checkout and not by `git archive`, which leaves out and rewrites what
    .gitattributes marks as export-ignore and export-subst: those are about what is published."""
    inside = _git(checkout, "rev-parse", "--show-prefix").decode(errors="surrogateescape").rstrip("\n")
    scratch = Path(tempfile.mkdtemp(prefix=".tree-", dir=root))
    own, files = {**(env or {}), "GIT_INDEX_FILE": str(scratch / "index")}, scratch / "files"
    _git(checkout, "-c", "core.sparseCheckout=false", "read-tree", tree, env=own)
    _git(checkout, "-c", "core.sparseCheckout=false", "checkout-index", "--all", f"--prefix={files}/", env=own)
    for path in (files / inside).iterdir():
        path.rename(root / path.name)
    shutil.rmtree(scratch)


def _git(
    where: Path,
    *args: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    stdout: int | IO[bytes] = subprocess.PIPE,
) -> bytes:
    command, env = ["git", "-c", "core.fsmonitor=false", *args], _git_env() | dict(env or {})
    done = subprocess.run(command, cwd=where, env=env, input=stdin, stdout=stdout, stderr=subprocess.PIPE)
    if done.returncode:
        raise ValueError(f"`git {' '.join(args)}` failed in {where}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout or b""


def _git_env() -> dict[str, str]:
    """Without what a git hook that runs us has set for its own repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def _copy_tree(checkout: Path, root: Path) -> None:
    left_out = {checkout / name for name in (*LEFT_OUT, *_foreign(checkout))}

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if Path(folder, name) in left_out or name == "__pycache__" or name.startswith(SECRETS)
        ]

    shutil.copytree(checkout, root, symlinks=True, ignore=ignore, dirs_exist_ok=True)


# --- its parameters ------------------------------------------------------------------------------------------------


def override(params: Path, values: Mapping[str, Any]) -> None:
    """Set keys such as `tune.trials` in params.yaml. A key that nothing knows is an error that names the nearest.

    A key that the file leaves at its default is put in.
    """
    from ruamel.yaml import YAML

    yamltext.read(params)  # says in our words what is wrong with the file
    file = YAML()
    file.preserve_quotes = True
    file.width = 1_000_000
    content = file.load(params)
    for key, value in values.items():
        _set(content, key, value, known=list(dict.fromkeys([*_keys(content), *_fields()])))
    with params.open("w", encoding="utf-8") as stream:
        file.dump(content, stream)


def _set(content: Any, key: str, value: Any, *, known: list[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        raise ValueError(f"`{key}` is no key of params.yaml.{f' Did you mean `{near[0]}`?' if near else ''}")
    *path, last = key.split(".")
    for part in path:
        if content.get(part) is None:
            content[part] = type(content)()
        content = content[part]
    if key == "clock.as_of":
        value = _spelled(value, like=content.get(last))
    if last in content:
        content[last] = _quoted(value)
    else:
        content.insert(0, last, _quoted(value))  # at the end it would come after the next section's comment


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    for name, value in content.items() if isinstance(content, Mapping) else ():
        yield f"{prefix}{name}"
        yield from _keys(value, f"{prefix}{name}.")


def _fields() -> Iterator[str]:
    """The keys that params.yaml may leave out: `section.field`."""
    for name, section in Params.model_fields.items():
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section):
            yield from (f"{name}.{field}" for field in section.annotation.model_fields)


def _quoted(value: Any) -> Any:
    """Texts that a reader would take for a number, a date, true or nothing, in quotes: a text stays one."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {name: _quoted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(item) for item in value]
    if type(value) is str and not yamltext.is_read_as_text(value):
        return DoubleQuotedScalarString(value)
    return value


def _spelled(value: Any, *, like: Any) -> Any:
    """One spelling a moment: DVC compares parameters as text, and 2013-07-01 and 2013-07-01T00:00:00 are the same."""
    moment = _moment(value)
    if moment is None:
        return value
    if moment == _moment(like):
        return like
    return moment.isoformat().removesuffix("T00:00:00")


def _moment(value: Any) -> datetime | None:
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value


# --- its DVC project -----------------------------------------------------------------------------------------------


def _configure(checkout: Path, root: Path, *, cache: str | Path, site: Path) -> None:
    """The checkout's settings and remotes, without git, with its own locks and hashes of files, and the given cache."""
    from dvc.config import Config, merge

    _check_path(Path(cache))
    settings = Config(str(checkout / ".dvc")).read()
    own = {
        "core": {
            "no_scm": True,
            "autostage": False,
            "analytics": False,
            "check_update": False,
            "site_cache_dir": str(site / ".dvc" / "tmp" / "site"),  # else each run leaves one under /var/tmp
        },
        "cache": {"dir": str(cache), "type": settings["cache"].get("type", ["hardlink", "copy"])},
    }
    merge(settings, own)
    (root / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    with _settings_of(root).edit("local") as written:
        merge(written, settings)
    (root / ".dvc" / "config.local").chmod(0o600)  # a remote's credentials may be among them


def _check_path(cache: Path) -> None:
    """DVC takes braces and `%(` in its cache's path for places to fill in, and dies in mid-run."""
    if re.search(r"[{}]|%\(", str(cache)):
        raise ValueError(
            f"the path of DVC's cache must hold no {{, }} or %(, but it is {cache}. Move or rename that folder, or set "
            "another by `dvc cache dir`."
        )


def _settings_of(root: Path) -> Any:
    """DVC's settings of a project, written as UTF-8: DVC itself writes ASCII, and dies of a folder such as `josé`."""
    from configobj import ConfigObj
    from dvc.config import Config, _pack_named

    class Settings(Config):  # type: ignore[misc]
        def _save_config(self, level: str, conf_dict: Any) -> None:
            with Path(self.files[level]).open("wb") as file:
                ConfigObj(_pack_named(conf_dict), encoding="utf-8").write(file)

    return Settings(str(root / ".dvc"))


def cache_of(checkout: Path) -> str:
    from dvc.config import Config

    return str(Config(str(checkout / ".dvc")).read()["cache"].get("dir") or checkout / ".dvc" / "cache")


@contextlib.contextmanager
def project(root: Path) -> Iterator[Any]:
    """DVC's repository object; it waits for its lock as long as somebody has it, and never writes a .gitignore."""
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    logging.getLogger("dvc.progress").setLevel(logging.CRITICAL)  # what DVC asks before it draws a bar
    with contextlib.closing(Repo(str(root), config={"core": {"no_scm": True}}, _wait_for_lock=True)) as repo:
        yield repo


def stages(root: Path) -> list[StageInfo]:
    """The stages of dvc.yaml, each after those that it needs, else in the file's order."""
    with _one_stage, contextlib.chdir(root), project(root) as repo:
        graph = repo.index.graph  # its edges point from a stage to what it needs
        needs = {stage.addressing: _names(graph.successors(stage)) for stage in repo.index.stages}
    return [StageInfo(name, needs[name]) for name in _ordered(needs)]


def _ordered(needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    done: list[str] = []
    while left := [name for name in needs if name not in done]:  # DVC has refused a circle
        done.append(next(name for name in left if set(needs[name]) <= set(done)))
    return done


def _names(found: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(stage.addressing for stage in found))


def lock(root: Path) -> dict[str, Any]:
    """dvc.lock as data: each stage's command, parameters, and the hashes of what it read and made."""
    path = root / "dvc.lock"
    return dict(yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def lock_hash(root: Path) -> str:
    """The same for the same content, whatever order the stages were run in."""
    return hashlib.sha256(json.dumps(lock(root), sort_keys=True, default=str).encode()).hexdigest()


# --- a stage -------------------------------------------------------------------------------------------------------


def run_stage(
    root: Path,
    name: str,
    *,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    force: bool = False,
) -> StageRun:
    """Have DVC run one stage, or find that it need not. `on_line` gets each line that its program says, at once.

    One stage at a time in a process: DVC wants to be in the project's folder. Raises StageFailed.
    """
    program = Program(name, on_line)
    started = time.monotonic()
    with _one_stage, contextlib.chdir(root), _run_by(program):
        changed = _reproduce(root, name, program, env=_program_env(env or {}), force=force)
    status: Literal["ran", "cached", "unchanged"] = "ran" if program.ran else "cached" if changed else "unchanged"
    return StageRun(name, status, program.cpu, time.monotonic() - started)


def _reproduce(root: Path, name: str, program: "Program", *, env: Mapping[str, str], force: bool) -> bool:
    from dvc.exceptions import DvcException

    _link_apart()
    with _heard("dvc_data") as errors:
        try:
            with project(root) as repo:
                objects.check_content(repo.cache.local, stage=name)
                changed = repo.reproduce(name, single_item=True, force=force, run_env=dict(env))
        except DvcException as error:
            log.debug("DVC's own account", exc_info=True)
            raise StageFailed(name, program.failure or _reason(error)) from None
    if errors:  # DVC logs that a file could not be copied into the cache, and ends as if it had been
        raise StageFailed(name, f"DVC could not keep {len(errors)} files of its outputs: {_reason(errors[0])}")
    return bool(changed)


@cache
def _link_apart() -> None:
    from dvc_objects.fs import system

    system.reflink = objects.link_apart(system.reflink)


def _reason(error: BaseException) -> str:
    """The innermost cause, since DVC wraps it in 'failed to reproduce ...'."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


class _Ear(logging.Handler):
    """Holds the exceptions that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


@contextlib.contextmanager
def _heard(name: str) -> Iterator[list[BaseException]]:
    """The exceptions that a library logs instead of raising them; nobody else hears them, a traceback a file."""
    ear, logger = _Ear(), logging.getLogger(name)
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [ear], False
    try:
        yield ear.errors
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _program_env(env: Mapping[str, str]) -> dict[str, str]:
    """The stages' `python` is the one that runs this, and what it prints comes at once."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {"PATH": path, "PYTHONUNBUFFERED": "1", **env}


@contextlib.contextmanager
def _run_by(program: "Program") -> Iterator[None]:
    """DVC runs a stage's command by a function of its own, which neither reads what it says nor ends it with us."""
    import dvc.stage.run as run

    theirs = run._run
    run._run = program.run
    try:
        yield
    finally:
        run._run = theirs


class Program:
    """A stage's command as a process: its lines, its CPU seconds, and why it failed."""

    def __init__(self, stage: str, on_line: Callable[[str], None] | None) -> None:
        self.stage = stage
        self.ran = False
        self.cpu = 0.0
        self.failure = ""
        self._lines: deque[str] = deque(maxlen=TAIL)
        self._on_line = on_line or _to_stderr
        self._progress_at = time.monotonic()

    def run(self, executable: str, command: str, **popen: Any) -> None:
        """What DVC calls: run the command to its end, or raise its StageCmdFailedError."""
        from dvc.stage.exceptions import StageCmdFailedError

        self.ran = True
        status = self._run(_argv(command, executable, path=popen["env"].get("PATH")), popen)
        if status:
            self.failure = failure(self.stage, status, list(self._lines))
            raise StageCmdFailedError(command, status)

    def _run(self, argv: list[str], popen: dict[str, Any]) -> int:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen
        )
        assert process.stdout is not None
        context = contextvars.copy_context()  # a flow's logger knows its run by it
        reader = threading.Thread(target=context.run, args=(self._read, process.stdout.fileno()), daemon=True)
        reader.start()
        try:
            return self._wait(process)
        except BaseException:  # Ctrl-C, a cancelled run: what it writes, it writes under temporary names
            process.kill()
            self._wait(process)
            raise
        finally:
            reader.join(timeout=10)  # a grandchild may hold the pipe open
            if not reader.is_alive():
                process.stdout.close()

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu += usage.ru_utime + usage.ru_stime
        return process.returncode

    def _read(self, pipe: int) -> None:
        """A bar's states end with a carriage return, lines with a new line."""
        rest = b""
        while chunk := os.read(pipe, 65536):
            *pieces, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
            for piece in pieces:
                self._said(piece.decode(errors="replace"))
        self._said(rest.decode(errors="replace") + "\n")

    def _said(self, piece: str) -> None:
        text = piece.rstrip()
        if not text:
            return
        if piece.endswith("\r"):
            self._progress(text)
        else:
            self._lines.append(text)
            self._tell(text)

    def _progress(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text}\x1b[K\r")
            sys.stderr.flush()
        elif time.monotonic() - self._progress_at > PROGRESS:
            self._progress_at = time.monotonic()
            self._tell(text)

    def _tell(self, text: str) -> None:
        """A listener that fails must not stop the reading: the program would wait for ever on a full pipe."""
        try:
            self._on_line(text)
        except Exception:
            log.exception("the listener to %s failed; its lines go to stderr", self.stage)
            self._on_line = _to_stderr


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _argv(command: str, executable: str, *, path: str | None) -> list[str]:
    """Without a shell where none is needed: some shells stay between, and a stage dies with its parent only."""
    if re.fullmatch(r"[\w@%+:,./ -]+", command) and shutil.which(command.split()[0], path=path):
        return shlex.split(command)
    return [executable, "-c", command]


def failure(stage: str, status: int, lines: list[str]) -> str:
    """What is to be said of a program that ended so: its own error from the line that names it, else its last lines."""
    named = [at for at, line in enumerate(lines) if re.match(r"(\w+: )?[\w.]*(Error|Exception)\b", line)]
    said = [line.removeprefix(f"{stage}: ") for line in lines[named[-1] if named else -5 :]]
    how = _signal(status) or ("" if named else f"ended with exit status {status}")
    return "\n".join([how, *said] if how else said)


def _signal(status: int) -> str:
    """A shell reports a signal as 128 and its number."""
    number = -status if status < 0 else status - 128
    if number not in {each.value for each in signal.Signals}:
        return ""
    name = signal.Signals(number).name
    why = {"SIGKILL": " (by hand, or because memory ran out)", "SIGINT": " (Ctrl-C)"}.get(name, "")
    return f"ended by {name}{why}"


# --- one run at a time ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_run(
    shared: Path, *, name: str = "run", say: Callable[[str], None] = log.info, timeout: float = 6 * 3600
) -> Iterator[None]:
    """One run of a name at a time for a home; a second waits and says for whom. A dead process holds nobody."""
    shared.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(shared / f"{name}.lock", thread_local=False), shared / f"{name}.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is under way ({_holder(holder)}); waiting for it, at most {timeout:.0f} s")
        _wait_for(lock, holder, timeout)
    try:
        holder.write_text(f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        yield
    finally:
        lock.release()


def is_run_under_way(shared: Path, *, name: str = "run") -> bool:
    """Whether a process holds the lock of this name now."""
    lock = FileLock(shared / f"{name}.lock", thread_local=False)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except FileNotFoundError:  # no home yet
        return False


def _wait_for(lock: FileLock, holder: Path, timeout: float) -> None:
    try:
        lock.acquire(timeout=timeout, poll_interval=0.2)
    except Timeout:
        raise TimeoutError(
            f"another run ({_holder(holder)}) did not end within {timeout:.0f} s. Wait for it, or end that process."
        ) from None


def _holder(path: Path) -> str:
    return path.read_text() if path.exists() else "which has not said its process yet"
