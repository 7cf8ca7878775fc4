"""What can be said of infra/ and CI without a container engine: the Dockerfile's rules, and that the copies agree."""

import ast
import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.automations import EventTrigger, RunDeployment
from prometheus_client import generate_latest

from flows import deploy
from tasks import TELEMETRY_OFF
from tasks.serving.active import Active
from tasks.serving.metrics import Metrics, StreamMetrics

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "infra" / "Dockerfile"
SECRET = re.compile(r"passw|secret|token|credential|(?<!pii)_key|aws_", re.IGNORECASE)


def steps(word: str) -> list[str]:
    """The arguments of every instruction of this name, an instruction a line, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [line.removeprefix(word).strip() for line in whole if line.startswith(f"{word} ")]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for step in steps("ENV") for pair in step.split())


def tracked() -> list[str]:
    """The files of the commit, and those that would be in the next."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def ignored(name: str) -> bool:
    """Whether .dockerignore leaves a file behind: a pattern is a path from the top, and takes all that is below it."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    paths = [name, *(str(parent) for parent in Path(name).parents)]
    return any(_matches(path, pattern) for path in paths for pattern in patterns)


def _matches(path: str, pattern: str) -> bool:
    anywhere = pattern.removeprefix("**/")
    return fnmatch(Path(path).name, anywhere) if anywhere != pattern else path == pattern


def workflow() -> dict[Any, Any]:
    return dict(yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text()))


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert linter is not None
    done = subprocess.run([linter, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_stage_stands_on_one_pinned_python() -> None:
    bases = {step.split()[0] for step in steps("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11(\.\d+)?-slim-[a-z]+", bases.pop())


def test_the_worker_is_no_root_and_cannot_write_its_code() -> None:
    users = steps("USER")
    assert users
    assert users[-1].isdigit()
    assert int(users[-1]) > 0
    assert all("--chown" not in step for step in steps("COPY"))


def test_nothing_is_fetched_but_packages() -> None:
    assert steps("ADD") == []
    assert [step for step in steps("RUN") if re.search(r"curl|wget|://", step)] == []


def test_everything_that_is_copied_exists() -> None:
    sources = [step.split()[:-1] for step in steps("COPY") if not step.startswith("--from")]
    assert sources
    assert [name for source in sources for name in source if not (ROOT / name).exists()] == []


def test_the_environment_is_the_lock_with_its_hashes() -> None:
    installs = [step for step in steps("RUN") if "uv pip install" in step]
    assert len(installs) == 1
    assert installs[0].endswith("--require-hashes -r requirements.lock")
    assert re.search(r"uv==\d", " ".join(steps("RUN")))


def test_no_secret_is_built_in() -> None:
    assert steps("ARG") == []
    assert [name for name in environment() if SECRET.search(name)] == []
    for name in (".evergreen/pii.key", ".dvc/config.local", ".git/config", ".git/logs/HEAD", ".env"):
        assert ignored(name), name


def test_no_file_of_the_commit_is_left_out_of_the_image() -> None:
    assert [name for name in tracked() if ignored(name)] == []


@pytest.mark.parametrize("name", ["data/raw/a.parquet", "models/model.ubj", ".venv/bin/python", ".dvc/cache/files/x"])
def test_what_runs_made_is_left_out_of_the_image(name: str) -> None:
    assert ignored(name)


def test_the_image_is_as_quiet_as_the_makefile() -> None:
    quiet = re.findall(
        r"^export (\w*(?:TRACK|TELEMETRY|ANALYTICS)\w*) := (\S+)$", (ROOT / "Makefile").read_text(), re.M
    )
    assert dict(quiet) == TELEMETRY_OFF
    assert {name: environment().get(name) for name, _ in quiet} == dict(quiet)


def test_it_starts_a_process_worker_that_says_how_it_is() -> None:
    start = json.loads(steps("ENTRYPOINT")[-1])
    assert start[-6:] == ["python", "-m", "flows.worker", "--type", "process", "--with-healthcheck"]
    assert "/health" in steps("HEALTHCHECK")[-1]


def test_the_page_names_the_variables_that_the_code_reads() -> None:
    code = "\n".join(path.read_text() for folder in ("tasks", "flows") for path in (ROOT / folder).rglob("*.py"))
    read = set(re.findall(r"EVERGREEN_[A-Z_]+[A-Z]", code))
    assert set(re.findall(r"EVERGREEN_[A-Z_]+[A-Z]", (ROOT / "infra" / "README.md").read_text())) == read


def test_ci_runs_what_the_ci_script_runs() -> None:
    script = re.findall(r"^make [\w-]+$", (ROOT / ".ci" / "run").read_text(), re.M)
    runs = [step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step]
    assert runs == script
    assert runs


def test_ci_may_only_read_and_ends() -> None:
    assert workflow()["permissions"] == {"contents": "read"}
    assert set(workflow()[True]) == {"push", "pull_request"}  # YAML 1.1 takes `on` for a truth
    for job in workflow()["jobs"].values():
        assert job["timeout-minutes"] <= 90
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.search(r"@v\d+$", use) for use in uses)


# --- the deployments

DEPLOYMENTS = {one["name"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_runs_a_flow_of_this_project_with_parameters_that_it_has(name: str) -> None:
    path, _, function = DEPLOYMENTS[name]["entrypoint"].partition(":")
    assert path == f"flows/{function}.py"
    assert name in (function, f"{function}-again")
    assert DEPLOYMENTS[name]["parameters"].keys() <= arguments_of(path, function)


def arguments_of(path: str, function: str) -> set[str]:
    functions = [one for one in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(one, ast.FunctionDef)]
    return next(
        {arg.arg for arg in (*one.args.args, *one.args.kwonlyargs)} for one in functions if one.name == function
    )


def test_what_the_monitor_says_is_what_the_retrain_waits_for() -> None:
    automation = deploy.start(uuid4())
    source = (ROOT / "flows/monitor.py").read_text()
    assert isinstance(automation.trigger, EventTrigger)
    assert {f'WANTED = "{name}"' in source for name in automation.trigger.expect} == {True}
    (action,) = automation.actions
    assert isinstance(action, RunDeployment)
    assert action.parameters
    sent = set(re.findall(r'"(\w+)": ', source.partition("payload={")[2].partition("}")[0]))
    assert {re.sub(r"[{} ]|event.payload.", "", value) for value in action.parameters.values()} <= sent
    assert action.parameters.keys() <= arguments_of("flows/retrain.py", "retrain")


# --- what is watched

DASHBOARD = json.loads((ROOT / "infra" / "grafana" / "dashboard.json").read_text())
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def list_metrics(text: str) -> set[str]:
    """The names of the series that a page of /metrics gives, or will give once something is counted."""
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M)
    return {name.removesuffix("_total") + end for name, kind in families for end in SUFFIXES[kind]}


def list_shown() -> dict[str, set[str]]:
    """Of each panel the series that it asks for."""
    queries = {one["title"]: " ".join(target["expr"] for target in one["targets"]) for one in DASHBOARD["panels"]}
    return {title: set(re.findall(r"evergreen_\w+", text)) for title, text in queries.items()}


def test_the_dashboard_asks_for_what_metrics_gives(tmp_path: Path) -> None:
    pages = (
        Metrics().text(),
        generate_latest(StreamMetrics(Active(tmp_path)).registry),
    )
    given = {name for page in pages for name in list_metrics(page.decode())}
    assert len(given) > 10
    assert {title: names - given for title, names in list_shown().items() if names - given} == {}
    assert all(list_shown().values())


def test_the_dashboard_shows_all_that_is_asked_of_an_api() -> None:
    names = {name for one in list_shown().values() for name in one}
    wanted = {
        "requests_total",
        "request_seconds_bucket",
        "errors_total",
        "score_bucket",
        "state_age_seconds",
        "version",
    }
    assert {f"evergreen_{name}" for name in wanted | {"stream_lag"}} <= names
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_asks_where_the_api_and_the_stream_answer() -> None:
    serving = yaml.safe_load((ROOT / "params.yaml").read_text())["serving"]
    jobs = yaml.safe_load((ROOT / "infra" / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in jobs for one in job["static_configs"] for target in one["targets"]]
    assert targets == [f"127.0.0.1:{serving['port']}", f"127.0.0.1:{serving['stream']['port']}"]
