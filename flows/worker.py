"""worker: Prefect's worker, which also takes up what was lost (flows/lost.py).

    python -m flows.worker --pool evergreen

Its options are those of `prefect worker start`.
"""

import runpy
import sys
import threading

from prefect.settings import get_current_settings

from flows import lost


def main() -> None:
    if get_current_settings().api.url:  # without it the worker says so, or starts a server of its own
        threading.Thread(target=lost.watch, name="lost runs", daemon=True).start()
    sys.argv = ["prefect", "worker", "start", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main()
