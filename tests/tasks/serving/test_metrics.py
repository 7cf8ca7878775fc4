"""tasks.serving.metrics: what is counted is told, by one process as by several that share a port."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tasks.serving.metrics import FOLDER, Metrics, cause_of

ROOT = Path(__file__).parents[3]
PROCESS = """
import sys
from tasks.serving.metrics import Metrics
told = Metrics()
for _ in range(3):
    told.count_request("/v1/predict", 200, 0.002)
told.count_request("/v1/predict", 503, 0.002)
told.count_predictions(1, 2, [0.25, 0.75])
told.version.set(int(sys.argv[1]))
print(told.text().decode())
"""


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    samples = (each for family in text_string_to_metric_families(text) for each in family.samples)
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}


def test_many_scores_at_once_are_counted_as_one_by_one() -> None:
    scores = [i / 40 for i in range(41)]
    once, singly = Metrics(), Metrics()
    once.count_predictions(1, len(scores), scores)
    for score in scores:
        singly.count_predictions(1, 1, [score])
    told = [
        {name: value for name, value in values(each.text().decode()).items() if "_created" not in name[0]}
        for each in (once, singly)
    ]
    assert told[0] == pytest.approx(told[1])
    assert told[0]["evergreen_score_count", ()] == 41


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "key"), (403, "scope"), (422, "row"), (503, "busy"), (500, "fault"), (400, "request")]
)
def test_an_answer_that_is_none_is_counted_by_what_was_wrong(status: int, kind: str) -> None:
    told = Metrics()
    told.count_request("/v1/predict", 200, 0.001)
    told.count_request("/v1/predict", status, 0.001)
    found = values(told.text().decode())
    assert cause_of(status) == kind
    assert {key: value for key, value in found.items() if key[0] == "evergreen_errors_total"} == {
        ("evergreen_errors_total", (("kind", kind),)): 1.0
    }


def test_several_processes_are_one_and_what_a_dead_one_counted_stays_while_its_gauges_go(tmp_path: Path) -> None:
    for version in (1, 2):
        text = process(version, tmp_path)
    found = values(text)
    assert found["evergreen_requests_total", (("path", "/v1/predict"), ("status", "200"))] == 6
    assert found["evergreen_errors_total", (("kind", "busy"),)] == 2
    assert found["evergreen_request_seconds_count", (("path", "/v1/predict"),)] == 8
    assert found["evergreen_score_count", ()] == 4
    assert found["evergreen_version", ()] == 2
    text = process(3, tmp_path)
    assert values(text)["evergreen_version", ()] == 3
    assert len(list(tmp_path.glob("gauge_live*.db"))) == 1


def process(version: int, folder: Path) -> str:
    command = [sys.executable, "-c", PROCESS, str(version)]
    env = {**os.environ, FOLDER: str(folder)}
    return subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout
