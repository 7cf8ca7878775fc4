"""A stage's program ends with the status and the words that its caller needs, and not after its caller."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
import yaml

from tasks import params
from tasks.runtime import pipeline, stage
from tests.conftest import Made, raw_params, write_params
from tests.tasks.runtime.conftest import with_stage, write
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
MAIN = "from tasks.runtime import stage; import os, time, sys\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """A program's text → the program, running in a folder with params.yaml."""
    raw = raw_params("binary", 60)
    raw["stage"]["limits"]["clean"] = "0.2s"
    write_params(raw, tmp_path)
    started = []

    def start(text: str) -> "subprocess.Popen[str]":
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", MAIN + text]
        heeding = signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts with & would ignore it, for good
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=-1, stderr=-1))
        signal.signal(signal.SIGINT, heeding)
        return started[-1]

    yield start
    for program in started:
        program.kill()
        program.communicate()


def outcome(program: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = program.communicate(timeout=60)
    return program.returncode, said


Start = Callable[[str], "subprocess.Popen[str]"]


def test_work_that_is_done_exits_with_0_and_its_log_names_the_stage(start: Start) -> None:
    work = "def work(p): stage.log.info('%s', p.spine.table)\nstage.main('ingest', work)"
    assert outcome(start(work)) == (0, "ingest: orders\n")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("ValueError('features.lead must be shorter')", "ingest: ValueError: features.lead must be shorter\n"),
        ("OSError(28, 'No space left on device')", "ingest: OSError: [Errno 28] No space left on device\n"),
        ("MemoryError('too big')", "ingest: MemoryError: too big\n"),
    ],
)
def test_an_error_that_a_person_can_mend_is_one_line_and_status_1(start: Start, raised: str, said: str) -> None:
    assert outcome(start(f"def work(p): raise {raised}\nstage.main('ingest', work)")) == (1, said)


@pytest.mark.parametrize("work", ["1 / 0", "json.loads('{')"])
def test_an_error_that_nobody_foresaw_shows_where_it_came_from(start: Start, work: str) -> None:
    """A ValueError of somebody else's code too: only this project's own are written for people."""
    status, said = outcome(start(f"import json\ndef work(p): {work}\nstage.main('ingest', work)"))
    assert status == 1
    assert "Traceback" in said
    assert "Error: " in said.splitlines()[-1]


def test_params_that_will_not_do_are_told_before_any_work(start: Start, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("cleen: 1\n")
    status, said = outcome(start("stage.main('ingest', print)"))
    assert status == 1
    assert "ingest: ValueError: params.yaml: `clock` is missing." in said
    assert "`cleen` is no known key. Did you mean `clean`?" in said


def test_ctrl_c_exits_as_the_shell_expects(start: Start) -> None:
    # Not one long sleep: a signal that comes just before it would not end it.
    work = "def work(p):\n    print('begun')\n    for _ in range(600): time.sleep(0.1)\nstage.main('ingest', work)"
    program = start(work)
    assert program.stdout is not None
    assert program.stdout.readline() == "begun\n"
    program.send_signal(signal.SIGINT)
    assert outcome(program) == (130, "")


def test_a_stage_that_hangs_is_ended_at_its_limit_with_the_limits_name(start: Start) -> None:
    status, said = outcome(start("def work(p): time.sleep(60)\nstage.main('clean', work)"))
    assert status == stage.TOO_LONG == 124
    assert (
        said == "clean: TimeoutError: clean did not end within its limit of 0:00:00.200000. Raise stage.limits.clean.\n"
    )


def test_a_stage_without_a_limit_is_not_ended(start: Start) -> None:
    limits = "stage.limit_time('x', None); stage.limit_time('y', timedelta(seconds=60))"
    work = f"from datetime import timedelta\n{limits}; print('on')"
    program = start(work)
    assert outcome(program)[0] == 0


PARENT = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", '''
import sys, time
from tasks.runtime import stage
{before}
stage.die_with_parent()
print("ready", flush=True)
time.sleep(60)
'''], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(
            "", id="asked of the kernel", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
        ),
        pytest.param("sys.platform = 'other'", id="by looking"),
    ],
)
def test_a_program_dies_with_the_parent_that_is_killed(start: Start, before: str) -> None:
    parent = start(PARENT.format(before=before))
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert lives(child)
    parent.kill()
    wait_until(lambda: not lives(child))


def lives(pid: int) -> bool:
    """Whether a process runs. A dead one that nobody has asked for yet does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip()[:1] not in ("", "Z")


def test_a_connection_keeps_to_the_stages_limits_and_to_utc() -> None:
    p = params.validate(raw_params("binary", 60))
    with stage.connect(p) as con:
        settings = "current_setting('threads'), current_setting('TimeZone'), current_setting('temp_file_encryption')"
        assert con.execute(f"SELECT {settings}").fetchall() == [(p.stage.threads, "UTC", True)]
        assert con.execute("SELECT current_setting('memory_limit')").fetchall()[0][0].endswith("MiB")
    assert isinstance(con, duckdb.DuckDBPyConnection)


SPILL = """
import os, sys
from tasks import params
from tasks.runtime import stage
from tests.conftest import raw_params
raw = raw_params("binary", 60)
raw["stage"]["memory"] = "60MB"
con = stage.connect(params.validate(raw))
con.execute("CREATE TEMP TABLE t AS SELECT i, 'person' || hash(i) AS name FROM range(700_000) r(i)")
sql = "SELECT sum(i), count(DISTINCT name) FROM (SELECT *, row_number() OVER (ORDER BY name) FROM t)"
print(*con.execute(sql).fetchone(), flush=True)
print(*con.execute("SELECT path FROM duckdb_temporary_files()").fetchone(), flush=True)
if sys.argv[1:]:
    os._exit(1)
"""


def run_spill(folder: Path, *arguments: str) -> list[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    program = folder / "spill.py"  # of `-c` DuckDB thinks that a person sits there, and draws bars
    program.write_text(SPILL)
    done = subprocess.run(
        [sys.executable, program.name, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == len(arguments), done.stderr
    return done.stdout.splitlines()


def test_a_query_larger_than_the_limit_spills_in_private_and_leaves_nothing(tmp_path: Path) -> None:
    """In a project it spills to the project's disk, and what a killed process left goes with the next one."""
    assert run_spill(tmp_path)[0] == "244999650000 700000"
    assert [path.name for path in tmp_path.iterdir()] == ["spill.py"]
    spill = tmp_path / ".dvc" / "tmp" / "spill"
    spill.parent.mkdir(parents=True)
    left = Path(run_spill(tmp_path, "die")[1])
    assert left.is_relative_to(spill)
    assert left.exists()
    assert not [path for path in left.parent.iterdir() if b"person" in path.read_bytes()]
    assert stat.S_IMODE(spill.stat().st_mode) == 0o700
    assert run_spill(tmp_path)[0] == "244999650000 700000"
    assert list(spill.iterdir()) == []


def test_a_service_that_is_away_is_asked_again_and_one_that_refuses_is_not() -> None:
    answers = iter([ConnectionError("away"), ConnectionError("away"), "there"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert stage.retry_while_away(ask, waits=[0, 0]) == "there"
    answers = iter([ValueError("refused"), "there"])
    with pytest.raises(ValueError, match="refused"):
        stage.retry_while_away(ask, waits=[0])
    answers = iter([ConnectionError("away"), ConnectionError("for good")])
    with pytest.raises(ConnectionError, match="for good"):
        stage.retry_while_away(ask, waits=[0])


def test_a_service_may_be_away_for_a_minute_and_start_for_another() -> None:
    assert sum(stage.WAITS_S) > 120


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_a_setting_that_dvc_wants_is_asked_for_before_the_first_stage_and_its_default_does(
    task: str, make_world: Callable[..., Made]
) -> None:
    """DVC keeps nothing of a stage whose parameters are not all in params.yaml, and says so after the stage has run."""
    made = make_world(task, days=3)
    shutil.copy(ROOT / "dvc.yaml", made.folder)
    for section, key in (("evaluate", "costs"), ("tune", "seed")):
        made.raw[section].pop(key)
    with pytest.raises(ValueError, match=r"lacks evaluate\.costs, tune\.seed") as refusal:
        stage.check_settings(made.params(), made.folder)
    told = dict(line.split(": ") for line in re.findall(r"`([^`]+)`", str(refusal.value)))
    assert told == {"evaluate.costs": "null", "tune.seed": "0"}
    stage.check_settings(made.params(**{name: yaml.safe_load(value) for name, value in told.items()}), made.folder)


def test_the_settings_of_this_project_are_all_that_dvc_wants() -> None:
    stage.check_settings(params.load(ROOT / "params.yaml"), ROOT)


def test_dvc_keeps_a_stage_whose_parameter_is_null_and_none_whose_parameter_is_missing(tmp_path: Path) -> None:
    """Why `check_settings` is there."""
    with_stage(tmp_path, "open('out', 'w').write('made')")
    graph = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    graph["stages"]["it"]["params"] = ["evaluate.costs"]
    write(tmp_path, {"dvc.yaml": yaml.safe_dump(graph), "params.yaml": "evaluate: {slices: []}\n"})
    with pytest.raises(pipeline.StageFailed, match=r"evaluate\.costs"):
        pipeline.run_stage(tmp_path, "it")
    write(tmp_path, {"params.yaml": "evaluate: {costs: null, slices: []}\n"})
    assert pipeline.run_stage(tmp_path, "it").status == "ran"
