"""tasks.runtime.cost: the CPU seconds of a run's parts, by what the operating system counts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.runtime import cost
from tasks.runtime.pipeline import StageFailed, run_stage
from tests.tasks.runtime.conftest import with_stage

BURN = "import time\nwhile time.process_time() < 0.5: pass\n"
MAKE = "open('out', 'w').write('x')"


def burn_and_fail() -> None:
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    raise ZeroDivisionError


def test_a_stage_costs_what_its_threads_and_children_take_and_not_what_it_waits(tmp_path: Path) -> None:
    child = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {BURN!r}])\ntime.sleep(1)\n"
    run = run_stage(with_stage(tmp_path, child + MAKE), "it")
    assert 0.5 < cost.read(tmp_path)["it"] < run.wall - 0.9


def test_a_stage_that_dvc_takes_from_its_cache_costs_nothing(tmp_path: Path) -> None:
    root = with_stage(tmp_path, MAKE)
    run_stage(root, "it")
    cost.begin(root)
    (root / "out").unlink()
    assert run_stage(root, "it").status == "cached"
    assert cost.read(root) == {}


def test_a_killed_stage_costs_what_it_took_until_then(tmp_path: Path) -> None:
    program = BURN + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(StageFailed, match="SIGKILL"):
        run_stage(with_stage(tmp_path, program), "it")
    assert cost.read(tmp_path)["it"] > 0.4


def test_a_block_that_fails_costs_what_it_took_until_then(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(ZeroDivisionError), cost.measure(tmp_path, "judge"):
        burn_and_fail()
    assert cost.read(tmp_path)["judge"] >= 0.2


def test_dvc_repro_keeps_what_a_stage_took_and_the_first_stage_begins_anew(tmp_path: Path) -> None:
    """Without a flow, the stage itself knows what it took."""
    root, program = Path(__file__).parents[3], "from tasks.runtime import stage\nstage.main({!r}, lambda p: None)"
    for name in ("ingest", "tune"):
        folder = with_stage(tmp_path / name, program.format(name))
        (folder / "params.yaml").write_text((root / "params.yaml").read_text())
        cost.note(folder, "train", 7.0)  # of an earlier run
        env = {**os.environ, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "it.py"], cwd=folder, env=env, check=True)
        noted = cost.read(folder)
        assert noted[name] > 0
        assert ("train" in noted) == (name == "tune")


def test_where_dvc_has_no_folder_nothing_is_kept(tmp_path: Path) -> None:
    cost.note(tmp_path, "judge", 1.0)
    assert list(tmp_path.iterdir()) == []


def test_money_is_the_hours_of_one_cpu_times_its_price() -> None:
    assert cost.price({"tune": 1800.0, "judge": 5400.0}, 0.05) == pytest.approx(0.1)


def test_the_home_keeps_what_each_period_took_when_it_was_last_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("2024-01", 2.0), ("2024-02", 3.0)):
        cost.note_made(
            [Path(f"data/clean/orders/{name}.parquet"), Path(f"data/quarantine/orders/{name}.parquet")], seconds
        )
    cost.note_made([tmp_path / "elsewhere" / "probed.json"], 9.0)
    cost.keep(tmp_path, "clean", 6.0, cost.read_made(tmp_path))
    assert cost.read_past(tmp_path, "clean") == cost.Past(
        6.0, 1.0, {"orders/2024-01": 2.0, "orders/2024-02": 3.0}, ("orders/2024-01", "orders/2024-02")
    )
    cost.keep(tmp_path, "clean", 5.0, [(Path("data/clean/orders/2024-02.parquet"), 4.0)])
    past = cost.read_past(tmp_path, "clean")
    assert past is not None
    assert (past.made, past.fixed) == ({"orders/2024-01": 2.0, "orders/2024-02": 4.0}, 1.0)


def test_a_past_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert cost.read_past(tmp_path, "clean") is None
    (tmp_path / "cost").mkdir()
    (tmp_path / "cost" / "clean.json").write_text('{"wall": 1}')
    assert cost.read_past(tmp_path, "clean") is None
