"""Where the state that runs share lies."""

import os
from pathlib import Path


def home(checkout: Path | None = None) -> Path:
    """The one folder of a checkout's shared state: EVERGREEN_HOME, else .evergreen in the checkout (the cwd)."""
    named = os.environ.get("EVERGREEN_HOME")
    return Path(named).absolute() if named else (checkout or Path.cwd()).resolve() / ".evergreen"
