"""The code of a run: the checkout's files as they are, or as they were at a commit, and the patch from that commit.

Everything that git tracks travels, and new files that look like code. Data and secrets that git does not track stay.
Where there is no git, a snapshot (snapshot.py) says which commit the code is of.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks import log, params
from tasks.runtime import snapshot, store

UNKNOWN = "unknown"  # the commit of a run that was made without git, or before the first commit
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


def copy_code(checkout: Path, root: Path, *, commit: str | None, patch: Path | None) -> tuple[str, bytes]:
    """Fill `root` with the code; the commit that it stands on, and the patch from there."""
    if commit is not None:
        return _code_of_commit(checkout, root, commit=commit, patch=patch)
    if not _is_in_git(checkout):
        if found := snapshot.read_snapshot(checkout):
            snapshot.copy_snapshot(checkout, found, root)
            return found.commit, b""
        _copy_tree(checkout, root)
        return UNKNOWN, b""
    with _write_tree(checkout) as (tree, env):
        _unpack_tree(checkout, root, tree=tree, env=env)
        base, diff = _diff_from_head(checkout, tree, env)
    if (lock := checkout / "dvc.lock").exists() and not (root / "dvc.lock").exists():
        shutil.copyfile(lock, root / "dvc.lock")
    return base, diff


def _code_of_commit(checkout: Path, root: Path, *, commit: str, patch: Path | None) -> tuple[str, bytes]:
    if commit == UNKNOWN and patch is None:
        raise ValueError("the code of a run without a commit and without a patch is not known: it was made without git")
    if commit != UNKNOWN and not _is_in_git(checkout):
        _copy_snapshot_of(commit, root)
    elif commit != UNKNOWN:
        commit = _git(checkout, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()
        _unpack_tree(checkout, root, tree=commit)
    if patch is None:
        return commit, b""
    # The ceiling: a workspace lies inside the checkout, and git would take the checkout's paths for the patch's.
    _git(root, "apply", "--whitespace=nowarn", str(patch.resolve()), env={"GIT_CEILING_DIRECTORIES": str(root.parent)})
    return commit, patch.read_bytes()


def _copy_snapshot_of(commit: str, root: Path) -> None:
    """Fill `root` with the code of a commit that was deployed from the store of a team."""
    shared = store.find_store()
    with tempfile.TemporaryDirectory() as scratch:
        code = snapshot.fetch_snapshot(commit, Path(scratch), shared) if shared else None
        if code is None:
            raise ValueError(
                f"the code of commit {commit} is not known here: there is no git, and no store that has it. Run this "
                "in a clone, or deploy that commit with `evergreen deploy --code store`."
            )
        snapshot.copy_snapshot(Path(scratch), code, root)


def save_code(checkout: Path, shared: store.Store) -> str:
    """Bring the checkout's commit to the store of a team; the folder's name there.

    Raises:
        ValueError: There is no commit, or the checkout differs from it: a worker without git could not tell how.
    """
    commit, patch = find_commit_and_patch(checkout)
    if commit == UNKNOWN:
        raise ValueError(f"code must be committed to travel to workers, but {checkout} has no commit. Commit it.")
    if patch:
        lines = patch.decode(errors="replace").splitlines()
        edited = [line.rpartition(" b/")[2] for line in lines if line.startswith("diff --git ")]
        raise ValueError(
            f"code must be committed to travel to workers, but {checkout} has edits that are not "
            f"({', '.join(edited[:5])}{', ...' if edited[5:] else ''}). Commit them, or put them away with `git stash`."
        )
    with tempfile.TemporaryDirectory() as scratch:
        copy_code(checkout, Path(scratch), commit=commit, patch=None)
        if (lock := checkout / "dvc.lock").exists():
            shutil.copyfile(lock, Path(scratch) / "dvc.lock")
        return snapshot.save_snapshot(Path(scratch), commit, shared)


def _is_in_git(checkout: Path) -> bool:
    if shutil.which("git") is None:
        return False
    asked = subprocess.run(["git", "check-ignore", "-q", "dvc.yaml"], cwd=checkout, env=_git_env(), capture_output=True)
    if asked.returncode == 128 and (checkout / ".git").exists():
        raise ValueError(f"git cannot read {checkout}: {asked.stderr.decode(errors='replace').strip()}")
    return asked.returncode == 1  # 0: a repository around the checkout, which ignores it


def find_commit_and_patch(checkout: Path) -> tuple[str, bytes]:
    """The commit that the checkout's code stands on, and the patch from there; empty where nothing was edited.

    The same that a workspace of it would tell, so that a run by `dvc repro` and one by a flow have one lineage.
    """
    checkout = checkout.resolve()
    if not _is_in_git(checkout):
        found = snapshot.read_snapshot(checkout)
        return found.commit if found else UNKNOWN, b""
    with _write_tree(checkout) as (tree, env):
        return _diff_from_head(checkout, tree, env)


@contextlib.contextmanager
def _write_tree(checkout: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The code as it is as a tree of git, by an index and objects of our own, which the environment names."""
    with tempfile.TemporaryDirectory() as scratch:
        env = _make_index(checkout, Path(scratch))
        _git(checkout, "update-index", "--add", "--remove", "-z", "--stdin", env=env, stdin=_list_code(checkout))
        yield _git(checkout, "write-tree", env=env).decode().strip(), env


def _diff_from_head(checkout: Path, tree: str, env: Mapping[str, str]) -> tuple[str, bytes]:
    asked = subprocess.run(
        ["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=checkout, env=_git_env(), capture_output=True, text=True
    )
    head = asked.stdout.strip()
    base = head or _git(checkout, "hash-object", "-t", "tree", os.devnull).decode().strip()
    only = ["--relative", "--", ".", ":(exclude)dvc.lock"]  # the lock says what was made, not what makes it
    return head or UNKNOWN, _git(checkout, "diff", *PLAIN, base, tree, *only, env=env)


def _list_code(checkout: Path) -> bytes:
    """The names of the files that make up the code, each ended by a NUL: all that git tracks, and new code."""
    new = _names_in_git(checkout, "--others", "--exclude-standard")
    code = [name for name in new if _is_code(checkout / name, Path(name))]
    if data := [name for name in new if name not in code and name != "dvc.lock"]:
        log.warning(
            "%d files that git does not track are no code and are left out of the run and of its patch (%s%s). Data "
            "belongs outside the checkout or under an ignored path; what the code needs beside it, `git add` brings in",
            len(data),
            ", ".join(data[:3]),
            ", ..." if data[3:] else "",
        )
    return "".join(f"{name}\0" for name in [*_names_in_git(checkout, "--cached"), *code]).encode(
        errors="surrogateescape"
    )


def _names_in_git(checkout: Path, *which: str) -> list[str]:
    names = _git(checkout, "ls-files", *which, "-z").decode(errors="surrogateescape").split("\0")[:-1]
    foreign = tuple(_list_foreign(checkout))
    return [name for name in names if not name.endswith("/") and not name.startswith(foreign)]  # "/": a nested clone


def _is_code(path: Path, name: Path) -> bool:
    """Whether a file that git does not know is code. Else it may be a table of people, or a password."""
    if any(part.startswith(SECRETS) for part in name.parts):
        return False
    if name.suffix.lower() not in CODE and name.name != LOCKED:
        return False
    return path.is_symlink() or (path.is_file() and path.stat().st_size <= CODE_SIZE)


def _make_index(checkout: Path, scratch: Path) -> dict[str, str]:
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


def _list_foreign(checkout: Path) -> list[str]:
    """Paths in the checkout that are not its code even where no .gitignore says so."""
    shared = params.home(checkout)
    return [*NOT_CODE, *([f"{shared.relative_to(checkout)}/"] if shared.is_relative_to(checkout) else [])]


def _unpack_tree(checkout: Path, root: Path, *, tree: str, env: Mapping[str, str] | None = None) -> None:
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


def _git(where: Path, *args: str, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> bytes:
    command, env = ["git", "-c", "core.fsmonitor=false", *args], _git_env() | dict(env or {})
    done = subprocess.run(command, cwd=where, env=env, input=stdin, capture_output=True)
    if done.returncode:
        raise ValueError(f"`git {' '.join(args)}` failed in {where}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _git_env() -> dict[str, str]:
    """Without what a git hook that runs us has set for its own repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def _copy_tree(checkout: Path, root: Path) -> None:
    left_out = {checkout / name for name in (*LEFT_OUT, *_list_foreign(checkout))}

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if Path(folder, name) in left_out or name == "__pycache__" or name.startswith(SECRETS)
        ]

    shutil.copytree(checkout, root, symlinks=True, ignore=ignore, dirs_exist_ok=True)
