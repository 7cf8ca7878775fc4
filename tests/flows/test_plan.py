"""tasks.drafting.plan: what it says before a run is what DVC then runs, stage by stage and period by period."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.drafting.forecast import Known, Step, forecast
from tasks.drafting.plan import describe_periods, plan, summarize, tabulate
from tasks.runtime.cost import Past
from tasks.runtime.graph import Content, Entry, Node
from tests.conftest import KEY
from tests.flows.conftest import make_checkout, project_params

Edit = Callable[[Path], None]
STAGES = ["ingest", "clean", "features", "tune", "train", "evaluate", "record"]


@pytest.fixture(scope="module")
def checkout(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which all stages have run, with its home below it."""
    folder = tmp_path_factory.mktemp("planned") / "checkout"
    shutil.copytree(made_once / "checkout", folder, symlinks=True)
    shutil.copytree(made_once / "home", folder / ".evergreen")
    return folder


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    monkeypatch.delenv("EVERGREEN_PERIODS", raising=False)
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    monkeypatch.setenv("EVERGREEN_PII_KEY", KEY)
    monkeypatch.chdir(checkout)


def read_disk(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(checkout: Path) -> tuple[set[str], dict[str, set[str]]]:
    """What `dvc repro` runs: its stages, and the periods that clean and features make, by their own log."""
    made = checkout / ".dvc" / "tmp" / "cost" / "made.txt"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=checkout,
        env={**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    paths = [Path(line.rpartition(" ")[0]) for line in made.read_text().splitlines()] if made.exists() else []
    periods = {
        stage: {f"{path.parent.name}/{path.stem}" for path in paths if path.parts[1] == stage}
        for stage in ("clean", "features")
    }
    return set(re.findall(r"Running stage '(\w+)'", done.stdout)), periods


def set_param(name: str, value: Any) -> Edit:
    def edit(checkout: Path) -> None:
        raw = yaml.safe_load((checkout / "params.yaml").read_text())
        *sections, key = name.split(".")
        inner = raw
        for section in sections:
            inner = inner[section]
        inner[key] = value
        (checkout / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))

    return edit


def make_light(checkout: Path) -> None:
    """Another search, and what makes those of the other edits short."""
    for name, value in {"tune.seed": 8, "tune.trials": 1, "train.seeds": 1, "evaluate.baselines": ["constant"]}.items():
        set_param(name, value)(checkout)


def edit_feature(checkout: Path) -> None:
    path = checkout / "tasks" / "features.sql"
    path.write_text(path.read_text().replace("hour(asked.event_time) AS hour", "hour(asked.event_time) // 6 AS hour"))


def add_file(checkout: Path) -> None:
    """The last week of the orders once more, under other numbers: a file of its own, as a delivery comes."""
    lines = (checkout / "source" / "orders.csv").read_text().splitlines()
    number = lines[0].split(",").index("number")
    later = [line.split(",") for line in lines[1:] if "2024-02-2" in line]
    for fields in later:
        fields[number] = str(int(fields[number]) + 1_000_000)
    (checkout / "source" / "orders-2.csv").write_text("\n".join([lines[0], *map(",".join, later)]) + "\n")
    set_param("sources.orders.address", "source/orders*.csv")(checkout)


EDITS: dict[str, tuple[Edit, set[str]]] = {
    "nothing": (lambda _: None, {"ingest"}),
    "a lighter search": (make_light, {"ingest", "tune", "train", "evaluate", "record"}),
    "a feature": (edit_feature, {*STAGES} - {"clean"}),
    "a rule": (set_param("contract.orders.columns.amount.min", 4.5), {*STAGES}),
    "a file": (add_file, {*STAGES}),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_the_plan_says_is_what_runs_by_stage_and_period(name: str, checkout: Path) -> None:
    edit, wanted = EDITS[name]
    edit(checkout)
    before = read_disk(checkout)
    steps = {step.name: step for step in plan(checkout)}
    assert read_disk(checkout) == before, "a plan changes nothing"
    planned = {step.name for step in steps.values() if step.will in ("runs", "may run")}
    ran, made = run(checkout)
    assert planned == ran == wanted
    for stage in ("clean", "features"):
        assert (set(steps[stage].periods or ()) if stage in planned else set()) == made[stage]
    assert all(steps[stage].seconds for stage in planned), "each of them has run here before"


def test_an_edit_that_changes_no_result_runs_its_stage_and_not_what_may_run(checkout: Path) -> None:
    """A comment: features are computed anew and come out as before, which nobody can know without computing them."""
    path = checkout / "tasks" / "features.sql"
    path.write_text(f"-- a comment\n{path.read_text()}")
    steps = plan(checkout)
    ran, _ = run(checkout)
    assert {step.name for step in steps if step.will == "runs"} <= ran == {"ingest", "features", "record"}
    assert ran <= {step.name for step in steps if step.will in ("runs", "may run")}


def test_an_edit_taken_back_is_in_the_cache(checkout: Path) -> None:
    path = checkout / "tasks" / "features.sql"
    path.write_text(path.read_text().removeprefix("-- a comment\n"))
    assert {step.name: step.will for step in plan(checkout)} == dict.fromkeys(STAGES, "cached") | {
        "ingest": "runs",
        **dict.fromkeys(("clean", "tune", "train", "evaluate"), "unchanged"),
    }


def test_a_plan_names_what_has_changed(checkout: Path) -> None:
    edited = checkout / "params.yaml"
    text = edited.read_text()
    set_param("gate.min_rows", 301)(checkout)
    set_param("evaluate.costs.false_negative", 3)(checkout)
    steps = {step.name: step for step in plan(checkout)}
    edited.write_text(text)
    assert steps["train"].why == ("evaluate.costs.false_negative changed",)
    assert steps["evaluate"].will == "runs"
    assert steps["tune"].will == "unchanged"


def test_a_run_that_would_fail_is_told_with_its_reason(checkout: Path) -> None:
    source = checkout / "source" / "customers.csv"
    source.rename(source.with_suffix(".away"))
    steps = plan(checkout)
    source.with_suffix(".away").rename(source)
    assert [step.will for step in steps] == ["fails", *["unknown"] * 6]
    assert "source/customers.csv does not exist" in steps[0].why[0]
    assert summarize(steps).startswith("ingest would fail.")


def test_a_checkout_without_a_run_runs_all_and_knows_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path, project_params())
    monkeypatch.chdir(tmp_path)
    steps = plan(tmp_path)
    assert [(step.name, step.will) for step in steps[:4]] == [(name, "runs") for name in STAGES[:4]]
    assert all(step.seconds is None for step in steps if step.name not in ("ingest", "clean"))
    assert steps[2].periods == ("features/2024-01", "features/2024-02")
    assert not (tmp_path / ".evergreen").exists()


# --- the decision alone ----------------------------------------------------------------------------------------------

MAKE = Node("make", "make", ("in",), ("out",), {"size": 1})
USE = Node("use", "use", ("out",), ("end",), {})
LAST = {
    "make": Entry("make", {"in": "i"}, {"size": 1}, {"out": "o"}),
    "use": Entry("use", {"out": "o"}, {}, {"end": "e"}),
}


def decide(*nodes: Node, files: dict[str, str], **known: Any) -> list[Step]:
    empty: dict[str, Any] = {"outs": {}, "made": {}, "periods": {}, "seconds": {}, "past": {}, "sizes": {}}
    return forecast(
        nodes,
        Known(files=files, **(empty | known)),
        find=lambda node, deps: entry if (entry := LAST[node.name]).fits(node, deps) else None,
        find_last=LAST.get,
        open_content=Content,
    )


def test_what_reads_unknown_data_may_run_and_what_reads_known_data_is_decided() -> None:
    assert [step.will for step in decide(MAKE, USE, files={"in": "i"})] == ["unchanged", "unchanged"]
    assert [step.will for step in decide(MAKE, USE, files={"in": "j"})] == ["runs", "may run"]
    rehearsed = decide(MAKE, USE, files={"in": "j"}, outs={"out": Content("o")})
    assert [step.will for step in rehearsed] == ["runs", "unchanged"]


def test_time_is_reckoned_by_period_and_by_size() -> None:
    past = {"make": Past(10.0, made={"out/1": 2.0, "out/2": 4.0}, last=("out/1", "out/2")), "use": Past(6.0, size=3.0)}
    steps = decide(MAKE, USE, files={"in": "j"}, past=past, sizes={"use": 12.0}, made={"make": ["out/2", "out/3"]})
    assert [step.seconds for step in steps] == [10.0 - 6.0 + 4.0 + 3.0, 24.0]


def test_the_table_shows_periods_by_table_and_few_by_name() -> None:
    step = Step("clean", "runs", ("x changed",), ("a/1", "b/1", "b/2", "b/3", "b/4"), 9, 3.0)
    assert describe_periods(step) == "5 of 9: a 1; b 1 … 4 (4)"
    assert tabulate([step]).row_count == 1


def test_the_sum_names_what_it_leaves_out() -> None:
    steps = [
        Step("ingest", "runs", seconds=2.0),
        Step("clean", "runs", seconds=3.0),
        Step("tune", "may run", seconds=None),
    ]
    assert summarize(steps).startswith("About 5.0 s, and what tune will take, of which no run is known here.")
    assert summarize(steps[:2]).startswith("About 5.0 s in all, by what the last runs took.")
    assert summarize([Step("ingest", "runs"), Step("clean", "cached")]).startswith("Nothing has changed")
