"""keys: API keys, as hashes: a line for each key with its name, its scopes and its SHA-256.

    python -m tasks.serving.keys shop --scopes predict,outcomes      # prints the key, once, and its line

A key is 256 random bits, so a plain hash of it gives nothing away. It is sent as Authorization: Bearer (RFC 6750).
"""

import argparse
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from tasks import log
from tasks.params import Serving

Scope = Literal["predict", "outcomes", "metrics", "model", "admin"]  # admin: all of them
SCOPES: tuple[Scope, ...] = get_args(Scope)
HERE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Key:
    name: str
    scopes: frozenset[str]
    digest: str


@dataclass(frozen=True)
class Keys:
    """Without a key everybody may ask everything, which is allowed on 127.0.0.1 only."""

    keys: tuple[Key, ...]
    mark: tuple[int, ...] | None = None  # of the key file that they were read from

    def owner(self, token: str) -> Key | None:
        """Whose key it is. Every key is compared, in a time that does not depend on how much of it fits."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        fits = [key for key in self.keys if hmac.compare_digest(key.digest, digest)]
        return fits[0] if fits else None


def read_token(header: str) -> str:
    """The key in an Authorization header; empty where it holds none."""
    scheme, _, token = header.partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else ""


def read_keys(settings: Serving) -> Keys:
    """From serving.key_file, else EVERGREEN_API_KEYS. Raises ValueError for a bad line, no key in the file, or an open
    door."""
    mark = _mark_of(settings)  # before the text: what changes meanwhile is read again
    text = Path(settings.key_file).read_text() if settings.key_file else os.environ.get("EVERGREEN_API_KEYS", "")
    lines = [line.strip() for line in text.splitlines()]
    keys = Keys(tuple(_key(line, i + 1) for i, line in enumerate(lines) if line and not line.startswith("#")), mark)
    make = "`python -m tasks.serving.keys <name>` makes one"
    if settings.key_file and not keys.keys:
        raise ValueError(
            f"serving.key_file must hold one API key at least, but {settings.key_file} has none: {make}; put its line "
            "there, or set key_file to null."
        )
    if not keys.keys and settings.host not in HERE and not settings.guarded:
        raise ValueError(
            f"serving.host is {settings.host}, so others can ask: that needs API keys. "
            f"{make}; put its line into the file that serving.key_file names. Where a platform in front checks who "
            "asks, set serving.guarded to true."
        )
    return keys


def renew_keys(old: Keys, settings: Serving) -> Keys:
    """The keys of the key file, where it has changed. While it cannot be read, the old ones count."""
    if (mark := _mark_of(settings)) == old.mark:
        return old
    try:
        keys = read_keys(settings)
    except (OSError, ValueError) as error:
        log.warning("the API keys stay as they were: %s", error)
        return replace(old, mark=mark)
    log.info("%s API keys of %s count from now on", len(keys.keys), settings.key_file)
    return keys


def _mark_of(settings: Serving) -> tuple[int, ...] | None:
    """What changes when the key file does; None where there is no file."""
    try:
        stat = os.stat(settings.key_file) if settings.key_file else None
    except OSError:
        return None
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size) if stat else None


def _key(line: str, number: int) -> Key:
    parts = line.split(":")
    scopes = frozenset(parts[1].split(",")) if len(parts) == 3 else frozenset()
    if len(parts) != 3 or not scopes <= set(SCOPES) or len(parts[2]) != 64:
        raise ValueError(f"line {number} of the API keys must be name:scopes:sha256, with scopes of {','.join(SCOPES)}")
    return Key(parts[0], scopes, parts[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="whose key it is")
    parser.add_argument("--scopes", default="predict,outcomes", help=f"of {','.join(SCOPES)}")
    asked = parser.parse_args()
    token = f"ev_{secrets.token_urlsafe(32)}"
    line = f"{asked.name}:{asked.scopes}:{hashlib.sha256(token.encode()).hexdigest()}"
    _key(line, 1)
    print(f"the key, which is shown this once: {token}\nits line: {line}")


if __name__ == "__main__":
    main()
