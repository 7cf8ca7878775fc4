"""cli: the `evergreen` command. Its options are the flows' own parameters; their help is the flows' docstrings.

    evergreen --help
    evergreen retrain --as-of 2013-07-01 --trials 12

A command's module is imported when the command is run, so that the list of commands comes at once. An error is one line
on stderr and the exit status 1; `--debug` shows where it came from.
"""

import copy
import logging
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from tasks.runtime import leaving

FLOWS = {  # flows/<name>.py holds the flow of that name, and `describe`, which puts its result into words
    "retrain": "Train a candidate, judge it, and let it serve if the gate says so.",
    "score": "Bring in what has arrived, and have the champion predict it.",
    "monitor": "Measure the newest window, and decide whether to retrain.",
    "rollback": "Give the alias back to the version that served before.",
    "canary": "Try a version beside the champion, or end the trial.",
    "replay": "Compare retrain policies on your own history.",
    "reproduce": "Rebuild a registered version, and compare it byte for byte.",
}
PROGRAMS = {
    "init": ("tasks.drafting.init:main", "Look at a table, and write params.yaml and features.sql for it."),
    "check": ("tasks.drafting.check:main", "Read params.yaml and features.sql against the data, before anything runs."),
    "plan": ("tasks.drafting.plan:main", "Which stages and periods the next run will work on, and for about how long."),
    "demo": ("flows.demo:demo", "Live through months of real flights: a first model, drift, a fresher model."),
    "deploy": ("flows.deploy:main", "Put prefect.yaml's deployments on the server at PREFECT_API_URL."),
    "up": ("infra.up:main", "Start Prefect, MLflow, Evidently, the API and a worker on this machine."),
    "contract": ("tasks.drafting.odcs:app", "The contract of params.yaml as an Open Data Contract (ODCS), and back."),
    "lineage": ("tasks.data.lineage:main", "From a feature back to the columns of the sources that it is made of."),
    "person": ("tasks.data.people:main", "In which tables and periods a person's rows are."),
    "pull": ("tasks.promotion.pull:main", "Bring a registered version back with its data."),
    "gc": ("tasks.promotion.gc:main", "Show what could be freed on disk, or free it."),
    "cloud": ("infra.aws.cloud:app", "What it needs on AWS: up, status, down."),
}
INTERRUPTED = 130  # exit status after Ctrl-C, as of a shell


app = App(
    name="evergreen",
    help="Keep a tabular model fresh: score, watch, retrain, judge, and go back where that is better.",
    version_flags=(),
    default_parameter=Parameter(negative=""),  # no --no-force beside --force
    help_epilogue="`--debug` shows the traceback of an error.",
)
for name, text in FLOWS.items():
    app.command(f"flows.{name}:{name}", name=name, help=text)
for name, (path, text) in PROGRAMS.items():
    app.command(path, name=name, help=text)
app.register_install_completion_command(help="Make this shell complete commands and options.")


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(show=False)] = False,
) -> int:
    """Run a command, and tell what came of it."""
    try:
        check_command(tokens)
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        if not debug:
            hide_tracebacks()
        result = command(*bound.args, **bound.kwargs)
        if command.__name__ not in FLOWS:
            return result if isinstance(result, int) else 0
        shown = import_module(f"flows.{command.__name__}").describe(result)
        print(shown) if isinstance(shown, str) else Console().print(shown)
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"evergreen: {word_error(error)}", file=sys.stderr)
        return 1


def check_command(tokens: Sequence[str]) -> None:
    """Raises ValueError for a command that is none, before cyclopts imports every command to say so."""
    names = [*FLOWS, *PROGRAMS]
    if tokens and not tokens[0].startswith("-") and tokens[0] not in names:
        close = get_close_matches(tokens[0], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(sorted(names))}"
        raise ValueError(f"there is no command {tokens[0]!r}: {hint}")


def word_error(error: Exception) -> str:
    """What went wrong, in one line where it has no details. A limit of pydantic's is told in its short form."""
    if isinstance(error, CycloptsError):
        message, is_pydantic, _ = str(error).partition(" 1 validation error")
        return f"{message} {error.__cause__.errors()[0]['msg']}" if is_pydantic else message  # type: ignore[union-attr]
    expected = isinstance(error, (ValueError, RuntimeError))
    return str(error) if expected else f"{type(error).__name__}: {error}"


def hide_tracebacks() -> None:
    """On the console, which Prefect's logging writes to by way of the root logger."""
    for handler in logging.getLogger().handlers:
        handler.format = partial(format_bare, handler.format)  # type: ignore[method-assign]


def format_bare(inner: Callable[[logging.LogRecord], str], record: logging.LogRecord) -> str:
    bare = copy.copy(record)  # the Prefect server gets the whole of it
    bare.exc_info = bare.exc_text = None
    return inner(bare)


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(app.meta(arguments, result_action="return_value"))


def run(command: str) -> None:
    """What `python -m flows.<command>` does: the command, with the options of this process."""
    leaving.leave_after(lambda: main([command, *sys.argv[1:]]))


if __name__ == "__main__":
    leaving.leave_after(main)
