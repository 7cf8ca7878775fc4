"""The `evergreen` command: its list comes at once, its options are the flows' own, its errors are one line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from flows import cli

ROOT = Path(__file__).parents[2]
LAZY = """
import sys
from flows import cli
try:
    cli.main(["--help"])
except SystemExit as end:
    assert not end.code
assert not {"prefect", "mlflow", "pandas", "flows.retrain"} & sys.modules.keys()
"""


def call(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


NESTED = ("cloud up", "cloud status", "cloud down", "contract export", "contract import")
GROUPS = {command.split()[0] for command in NESTED}


@pytest.fixture(params=[*cli.FLOWS, *(name for name in cli.PROGRAMS if name not in GROUPS), *NESTED])
def command(request: pytest.FixtureRequest) -> App:
    app = cli.app
    for name in request.param.split():
        app = app[name]
    return app


def test_the_list_of_commands_comes_without_what_they_import() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [name for name in (*cli.FLOWS, *cli.PROGRAMS) if f" {name} " not in done.stdout] == []


def test_every_option_of_a_command_has_its_help(command: App) -> None:
    options = [argument for argument in command.assemble_argument_collection(parse_docstring=True) if argument.show]
    assert [option.name for option in options if not option.parameter.help] == []


def test_people_are_not_asked_for_what_machines_fill_in() -> None:
    names = {argument.name for argument in cli.app["retrain"].assemble_argument_collection()}
    assert names == {"--as-of", "--kind", "--trials", "--budget", "--reason", "--settings", "--force"}


def test_options_become_the_values_that_a_flow_takes() -> None:
    options = ["--trials", "3", "--budget", "10m", "--settings", '{"train.refit": false}']
    assert parse("retrain", *options) == {"trials": 3, "budget": minutes(10), "settings": {"train.refit": False}}
    assert parse("replay", "--policies", "never,every:28d", "--policies", "both") == {
        "policies": ["never", "every:28d", "both"]
    }


def parse(*tokens: str) -> dict[str, Any]:
    _, bound, _ = cli.app.parse_args(tokens, exit_on_error=False)
    return dict(bound.arguments)


def minutes(number: int) -> Any:
    from datetime import timedelta

    return timedelta(minutes=number)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flows.cli", "retrian"], "evergreen: there is no command 'retrian': did you mean retrain?"),
        (["flows.cli", "x"], "evergreen: there is no command 'x': the commands are canary, check, cloud, contract, "),
        (["flows.cli", "reproduce", "x"], 'evergreen: Invalid value for VERSION: unable to convert "x" into int.'),
        (["flows.retrain", "--trials", "0"], 'evergreen: Invalid value "0" for --trials. Input should be greater than'),
        (["flows.cli", "deploy"], "evergreen: "),
    ],
)
def test_an_error_is_one_line_and_the_status_1(arguments: list[str], message: str) -> None:
    done = call(*arguments, PREFECT_API_URL="http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_debug_shows_where_an_error_came_from() -> None:
    done = call("flows.cli", "reproduce", "x", "--debug")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


def test_the_command_of_a_checkout_works_from_anywhere_and_after_a_move(tmp_path: Path) -> None:
    """As `make setup` puts it there; a link to it will do as well."""
    (tmp_path / "a checkout" / ".venv" / "bin").mkdir(parents=True)
    script = tmp_path / "a checkout" / ".venv" / "bin" / "evergreen"
    script.write_text((ROOT / "infra" / "evergreen.sh").read_text())
    script.chmod(0o755)
    (script.parent / "python").write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    (script.parent / "python").chmod(0o755)
    (tmp_path / "link").symlink_to(script)
    for program in (script, tmp_path / "link"):
        done = subprocess.run([program, "gc", "--do"], cwd="/", capture_output=True, text=True, check=True)
        assert done.stdout == f"{tmp_path.resolve()}/a checkout -m flows.cli gc --do\n"
