"""What surrounds `make up`: its parts are told where to be, and nothing that it starts outlives it."""

import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from flows import deploy
from infra import servers, team, up
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SLEEP = "import time; time.sleep(60)"
ORPHAN = f"""
import subprocess, sys
from infra.up import guarded
left = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}', sys.argv[1]])"
def work():
    subprocess.run([sys.executable, "-c", left, sys.argv[1]], check=True, start_new_session=True)
    return 3
sys.exit(guarded(work))
"""
DEAF = f"import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); {SLEEP}"


def test_what_lost_its_parent_is_ended_too() -> None:
    mark = f"orphan{os.getpid()}"
    done = subprocess.run([sys.executable, "-c", ORPHAN, mark], cwd=ROOT, timeout=60)
    assert done.returncode == 3
    assert subprocess.run(["pgrep", "-f", f"sleep.60. {mark}"], stdout=subprocess.DEVNULL).returncode == 1


def test_a_process_that_took_over_a_pid_is_left_alone() -> None:
    echo = [sys.executable, "-c", f"print(input(), flush=True); {SLEEP}"]
    process = subprocess.Popen(echo, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdin
    assert process.stdout
    try:
        assert process.pid in up.descendants(os.getpid())
        up.kill({process.pid: "another time"})
        process.stdin.write("alive\n")
        assert process.stdout.readline() == "alive\n"
        up.kill({process.pid: up.descendants(os.getpid())[process.pid]})
        assert process.wait(60) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken_is_named() -> None:
    with servers.socket.socket() as taken:
        taken.bind((servers.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 cannot be had .* --mlflow-port another"):
            servers.free_port(port, option="--mlflow-port")


def test_a_home_has_one_profile_and_a_team_of_this_machine_has_its_own_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in team.OURS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "team" / "postgres" / "data").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds the servers of PROFILE=team: give that again"):
        team.check_laptop(tmp_path / "team")
    team.open_team(tmp_path / "team", postgres_port=1, s3_port=2)
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(ValueError, match=r"holds a laptop's registry .*set EVERGREEN_HOME to another folder"):
        team.open_team(tmp_path, postgres_port=1, s3_port=2)
    monkeypatch.setenv("EVERGREEN_STORE", "s3://elsewhere/state")
    with pytest.raises(ValueError, match="the environment sets EVERGREEN_STORE, but PROFILE=team starts servers"):
        team.open_team(tmp_path / "team", postgres_port=1, s3_port=2)


def test_a_part_that_ends_before_it_answers_says_where_its_log_is(tmp_path: Path) -> None:
    part = servers.Part("stub", ("-c", "print('why'); raise SystemExit(4)"), lambda: False, dict(os.environ))
    running = servers.start(part, tmp_path)
    with pytest.raises(RuntimeError, match=r"stub ended with status 4; see .*stub\.log"):
        servers.wait(running)
    assert running.log.read_text() == "why\n"


def test_a_part_that_will_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}, sys.argv[1]])"
    mark = f"deaf{os.getpid()}"
    running = servers.start(servers.Part("deaf", ("-c", child, mark), lambda: True, dict(os.environ)), tmp_path)
    wait_until(lambda: "up" in running.log.read_text())
    servers.stop(running, seconds=0.5)
    assert running.describe_end()
    assert subprocess.run(["pgrep", "-f", f"SIG_IGN.*{mark}"], stdout=subprocess.DEVNULL).returncode == 1


def test_addresses_are_set_whatever_the_environment_says_and_numbers_are_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "7")
    env = servers.environment(tmp_path, api="http://127.0.0.1:1/api", mlflow="http://127.0.0.1:2")
    assert (env["PREFECT_API_URL"], env["MLFLOW_TRACKING_URI"]) == ("http://127.0.0.1:1/api", "http://127.0.0.1:2")
    assert env["PREFECT_WORKER_QUERY_SECONDS"] == "7"
    assert env["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"


def test_every_part_listens_on_this_machine_alone(tmp_path: Path) -> None:
    env = servers.environment(tmp_path, api="http://127.0.0.1:1/api")
    parts = (servers.prefect(1, env), servers.mlflow(2, tmp_path, env), servers.evidently(3, tmp_path / "e", env))
    for part in parts:
        assert part.arguments[list(part.arguments).index("--host") + 1] == "127.0.0.1"


def test_the_parts_send_heartbeats_as_the_detector_expects_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "180")
    env = servers.environment(tmp_path, api="http://127.0.0.1:1/api")
    assert timedelta(seconds=2 * int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])) < deploy.SILENCE


def test_the_parameters_of_a_crashed_run_are_passed_on_with_their_types() -> None:
    """As the server renders them: an attempt more, the rest as it was."""
    import json

    from prefect.server.utilities.user_templates import render_user_template_sync

    run = {
        "id": "7",
        "parameters": {"as_of": str(datetime(2024, 3, 1)), "trials": 3, "settings": {"train.refit": False}},
    }
    parameters = json.loads(render_user_template_sync(deploy.AGAIN, {"flow_run": run}))
    assert parameters == {**run["parameters"], "attempt": 1, "decision": "retrain-7"}
    run["parameters"] = parameters
    assert json.loads(render_user_template_sync(deploy.AGAIN, {"flow_run": run})) == {**parameters, "attempt": 2}
