"""Where the API listens: a flag, else the environment, else params.yaml; and a platform's own variables."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from infra.servers import free_port
from tasks import params
from tasks.serving import keys
from tasks.serving.address import read_address
from tests.conftest import raw_params, write_params
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


def read(**environ: str) -> tuple[str, int, int]:
    settings = read_address(params.load(ROOT / "params.yaml"), environ).serving
    return settings.host, settings.port, settings.workers


def test_without_a_variable_params_yaml_says_it() -> None:
    assert read() == ("127.0.0.1", 8080, 1)
    assert read(EVERGREEN_API_PORT="") == ("127.0.0.1", 8080, 1)


@pytest.mark.parametrize("name", ["AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT"])
def test_a_platform_that_names_its_port_asks_from_outside(name: str) -> None:
    assert read(**{name: "7080"}) == ("0.0.0.0", 7080, 1)
    mine = {"EVERGREEN_API_HOST": "127.0.0.1", "EVERGREEN_API_PORT": "9000", "EVERGREEN_API_WORKERS": "3"}
    assert read(**{name: "7080"}, **mine) == ("127.0.0.1", 9000, 3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("EVERGREEN_API_PORT", "http", r"EVERGREEN_API_PORT or AIP_HTTP_PORT .* must be a valid serving\.port"),
        ("AIP_HTTP_PORT", "70000", r"must be a valid serving\.port, but is '70000': .*65535"),
        ("EVERGREEN_API_WORKERS", "0", r"EVERGREEN_API_WORKERS must be a valid serving\.workers, but is '0'"),
    ],
)
def test_a_value_that_is_none_is_an_error_that_names_its_variable(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**{name: value})


def test_others_may_ask_without_a_key_only_where_a_platform_checks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGREEN_API_KEYS", raising=False)
    settings = read_address(params.load(ROOT / "params.yaml"), {"AIP_HTTP_PORT": "7080"}).serving
    with pytest.raises(ValueError, match=r"needs API keys.*set serving\.guarded to true"):
        keys.read_keys(settings)
    assert not keys.read_keys(settings.model_copy(update={"guarded": True})).keys


def test_a_flag_wins_over_the_environment_and_a_foreign_host_is_answered_where_it_is_guarded(tmp_path: Path) -> None:
    raw, port = raw_params("binary", 60), free_port()
    raw["serving"] = {"guarded": True}
    write_params(raw, tmp_path)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "EVERGREEN"))}
    env |= {"PYTHONPATH": str(ROOT), "EVERGREEN_HOME": str(tmp_path / "home"), "EVERGREEN_API_PORT": "1"}
    log = tmp_path / "api.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tasks.serving", "--host", "127.0.0.1", "--port", str(port)]
        api = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        wait_until(lambda: "startup complete" in log.read_text(), log=log)
        answer = httpx.get(f"http://127.0.0.1:{port}/ping", headers={"Host": "endpoint.example"})
        assert answer.status_code == 503  # no champion, and no 403
    finally:
        api.terminate()
        api.wait(30)
