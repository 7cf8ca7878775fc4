"""A project of DVC: its settings, where its cache and its remote are, and its repository object."""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks import params
from tasks.runtime import snapshot, store

# Of an S3 remote whose settings name none, seconds: DVC's own wait is a minute, five times.
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
STORE = "evergreen-store"  # the default remote of a project that names none
_one_project = threading.Lock()  # the working directory belongs to the whole process, and DVC needs it to be the root


def configure_project(checkout: Path, root: Path, *, cache: str | Path, site: Path, remote: bool = True) -> None:
    """The checkout's settings and remotes, without git, with its own locks and hashes of files, and the given cache.

    Where the checkout has no default remote and EVERGREEN_STORE names a store, the store's folder `dvc` is the remote.

    Args:
        remote: With the default remote. Without it, nothing is taken from there or sent there.
    """
    from dvc.config import Config, merge

    if re.search(r"[{}]|%\(", str(cache)):  # DVC takes these for places to fill in, and dies in mid-run
        raise ValueError(
            f"the path of DVC's cache must hold no {{, }} or %(, but it is {cache}. Move or rename that folder, or set "
            "another by `dvc cache dir`."
        )
    settings = Config(str(checkout / ".dvc")).read()
    if not settings["core"].get("remote") and (shared := store.find_store()):  # what stages make is shared state too
        settings["core"]["remote"] = STORE
        settings["remote"][STORE] = {"url": f"{shared.address}/dvc"}
    for place in settings["remote"].values():
        if str(place["url"]).startswith("s3://"):
            place.setdefault("connect_timeout", CONNECT_TIMEOUT)
            place.setdefault("read_timeout", READ_TIMEOUT)
    if not remote:
        settings["core"]["remote"] = ""  # the code's own .dvc/config may name one
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


def _settings_of(root: Path) -> Any:
    """DVC's settings of a project, written as UTF-8: DVC itself writes ASCII, and dies of a folder such as `josé`."""
    from configobj import ConfigObj
    from dvc.config import Config, _pack_named

    class Settings(Config):  # type: ignore[misc]
        def _save_config(self, level: str, conf_dict: Any) -> None:
            with Path(self.files[level]).open("wb") as file:
                ConfigObj(_pack_named(conf_dict), encoding="utf-8").write(file)

    return Settings(str(root / ".dvc"))


def find_cache(checkout: Path) -> str:
    """DVC's cache: as its settings say, else in the checkout. Code that was pulled for one run has it in the home."""
    from dvc.config import Config

    is_pulled = (checkout / snapshot.LIST).exists()
    usual = params.home(checkout) / "dvc" if is_pulled else checkout / ".dvc" / "cache"
    return str(Config(str(checkout / ".dvc")).read()["cache"].get("dir") or usual)


def find_remote(root: Path) -> str | None:
    """The address of DVC's default remote, such as s3://bucket/path. None where the project has none."""
    from dvc.config import Config

    settings = Config(str(root / ".dvc")).read()
    name = settings["core"].get("remote")
    return str(settings["remote"][name]["url"]) if name else None


@contextlib.contextmanager
def enter_project(root: Path) -> Iterator[Any]:
    """DVC's repository object, in its folder as the working directory. One at a time in a process."""
    with _one_project, contextlib.chdir(root), open_project(root) as repo:
        yield repo


@contextlib.contextmanager
def open_project(root: Path) -> Iterator[Any]:
    """DVC's repository object; it waits for its lock as long as somebody has it, and never writes a .gitignore."""
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    logging.getLogger("dvc.progress").setLevel(logging.CRITICAL)  # what DVC asks before it draws a bar
    with contextlib.closing(Repo(str(root), config={"core": {"no_scm": True}}, _wait_for_lock=True)) as repo:
        yield repo


@contextlib.contextmanager
def collect_errors(name: str) -> Iterator[list[BaseException]]:
    """The exceptions that a library logs instead of raising them. They are logged nowhere else."""
    errors: list[BaseException] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                errors.append(record.exc_info[1])

    logger = logging.getLogger(name)
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Collector()], False
    try:
        yield errors
    finally:
        logger.handlers, logger.propagate = handlers, propagate
