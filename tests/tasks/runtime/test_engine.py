"""What the engine spreads comes out the same in threads, in processes and on a scheduler, whatever dies."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest

from tasks.runtime import engine
from tests.tasks.runtime import spread
from tests.waiting import wait_until

EVERYWHERE = pytest.mark.parametrize("cluster", [None, "local:2"])


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    engine.close()
    engine.close()  # closing twice does nothing


@EVERYWHERE
def test_results_come_in_the_items_order(cluster: str | None) -> None:
    ended: list[int] = []
    squares = engine.map_ordered(spread.square, 3, range(9), spread.settings(cluster), report=ended.append)
    assert squares == [3 * item * item for item in range(9)]
    assert sorted(ended) == list(range(9))


def test_the_dearest_item_begins_first_and_results_come_in_the_items_order(tmp_path: Path) -> None:
    p, costs = spread.settings("local:1"), [2.0, 1.0, 3.0, 3.0]
    assert engine.map_ordered(spread.note, tmp_path / "order", range(4), p, costs=costs) == [0, 1, 2, 3]
    assert (tmp_path / "order").read_text().split() == ["2", "3", "0", "1"]


@EVERYWHERE
def test_nothing_to_do_starts_nothing(cluster: str | None) -> None:
    assert engine.map_ordered(spread.square, 3, [], spread.settings(cluster)) == []


@EVERYWHERE
def test_the_first_items_error_is_raised_as_itself_and_nothing_is_tried_again(
    cluster: str | None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"^item 2 is wrong$") as raised:
        engine.map_ordered(spread.fail_at_2_and_4, tmp_path, range(50), spread.settings(cluster))
    assert raised.traceback[-1].name == "fail_at_2_and_4"
    begun = {int(path.name): path.read_text().count("begun") for path in tmp_path.iterdir()}
    assert set(begun.values()) == {1}
    assert len(begun) < 50  # what comes after an error is not begun


@EVERYWHERE
def test_what_a_function_logs_is_logged_here(cluster: str | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="evergreen")
    engine.map_ordered(spread.square, 3, [7], spread.settings(cluster))
    assert [record.getMessage() for record in caplog.records] == ["the square of 7"]


def test_a_worker_is_where_its_sender_is_with_the_same_settings_of_openmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = engine.map_ordered(spread.see, None, range(4), spread.settings("local:2"))
    assert {(folder, omp) for _, folder, omp, _ in seen} == {(str(tmp_path), os.environ.get("OMP_NUM_THREADS"))}
    assert len({pid for pid, *_ in seen} - {os.getpid()}) == 2


def test_every_port_is_on_loopback() -> None:
    seen = engine.map_ordered(spread.see, None, range(4), spread.settings("local:2"))
    addresses = [*spread.listening(os.getpid()), *(address for *_, listed in seen for address in listed)]
    assert set(addresses) == {"127.0.0.1"}


def test_a_map_inside_of_a_worker_starts_no_processes() -> None:
    p = spread.settings("local:2")
    assert engine.map_ordered(spread.map_inside, p, [1, 2], p) == [(0, [1, 4]), (0, [4, 9])]


def test_a_killed_workers_item_is_done_by_another(tmp_path: Path) -> None:
    squares = engine.map_ordered(spread.die_once, tmp_path, range(6), spread.settings("local:2"))
    assert squares == [item * item for item in range(6)]
    assert (tmp_path / "killed").exists()


def test_what_has_ended_is_not_done_again_when_its_worker_dies_after_the_map(tmp_path: Path) -> None:
    p = spread.settings("local:2")
    pids = engine.map_ordered(spread.mark_slowly, tmp_path, range(4), p)
    for pid in {*pids}:
        os.kill(pid, signal.SIGKILL)
    assert engine.map_ordered(spread.square, 3, range(9), p) == [3 * item * item for item in range(9)]
    assert {path.name: path.read_text().count("\n") for path in tmp_path.iterdir()} == {
        f"begun-{item}": 1 for item in range(4)
    }


def test_workers_that_are_all_gone_are_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    p = spread.settings("local:2")
    engine.map_ordered(spread.square, 3, range(2), p)
    engine._CLUSTERS["local:2"]._own.scale(0)
    monkeypatch.setattr(engine, "LOST_S", 1.0)
    assert engine.map_ordered(spread.square, 3, range(9), p) == [3 * item * item for item in range(9)]


def test_a_worker_that_takes_long_to_start_again_is_not_given_up() -> None:
    engine.map_ordered(spread.square, 3, range(2), spread.settings("local:2"))
    assert dask.config.get("distributed.deploy.lost-worker-timeout") == "1h"  # now, since it is read when a worker dies


def test_an_item_that_kills_each_worker_ends_in_an_error_that_names_it() -> None:
    names = [f"the period {item}" for item in range(6)]
    with pytest.raises(RuntimeError, match=r"^the period 3 ended the process that worked on it, 3 times in a row"):
        engine.map_ordered(spread.die_at_3, None, range(6), spread.settings("local:2"), names=names)


def test_large_items_are_refused() -> None:
    with pytest.raises(ValueError, match=r"paths and parameters, at most 1,000,000 bytes, but item 2 of 2 has 2,0"):
        engine.map_ordered(spread.square, 1, ["", "x" * 2_000_000], spread.settings("local:2"))  # type: ignore[list-item]


def test_threads_import_no_dask() -> None:
    work = "engine.map_ordered(spread.square, 1, range(4), spread.settings(None))"
    text = f"import sys; from tasks.runtime import engine; from tests.tasks.runtime import spread; {work}\n"
    check = "assert not {'dask', 'distributed', 'tornado'} & {name.split('.')[0] for name in sys.modules}"
    subprocess.run([sys.executable, "-c", text + check], cwd=spread.ROOT, check=True)


@pytest.mark.parametrize(
    ("cluster", "error"),
    [
        (
            "tcp://10.0.0.5:8786",
            r"tls:// beyond this machine, since Dask runs what it is sent; got 'tcp://10.0.0.5:8786'",
        ),
        ("tcp://127.0.0.1.example.org:8786", "tls:// beyond this machine"),
        ("local:0", "a cluster is local:<processes>"),
        ("ucx://127.0.0.1:1", "a cluster is local:<processes>"),
        ("tls://host", "a cluster is local:<processes>"),
    ],
)
def test_addresses_that_anybody_may_reach_are_refused(cluster: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        spread.settings(cluster)


def test_each_local_process_has_its_share_of_threads_and_memory() -> None:
    stage = engine.divide(spread.settings("local:2", threads=5)).stage
    assert (stage.threads, stage.memory) == (2, "0.500GB")
    elsewhere = spread.settings("tls://host:8786")
    assert engine.divide(elsewhere) == elsewhere


def test_workers_die_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    text = (
        "from pathlib import Path; from tasks.runtime import engine; from tests.tasks.runtime import spread\n"
        f"engine.map_ordered(spread.spin, Path({str(tmp_path)!r}), range(2), spread.settings('local:2'))\n"
    )
    program = subprocess.Popen([sys.executable, "-c", text], cwd=spread.ROOT)
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        workers = [psutil.Process(int(path.name.partition("-")[2])) for path in tmp_path.iterdir()]
        program.send_signal(signal.SIGKILL)
        program.wait()
        wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 10)
    finally:
        program.kill()
        program.wait()


# --- schedulers elsewhere ---------------------------------------------------------------------------------------------


def test_a_scheduler_that_is_killed_and_started_again_loses_nothing(tmp_path: Path) -> None:
    port, results = spread.find_free_port(), list[int]()
    p = spread.settings(f"tcp://127.0.0.1:{port}")

    def work() -> None:
        results.extend(engine.map_ordered(spread.mark_and_wait, tmp_path, range(3), p))

    mapping = threading.Thread(target=work)
    with spread.run_program(*spread.worker(port)), spread.run_program(*spread.scheduler(port)) as first:
        mapping.start()
        wait_until(lambda: (tmp_path / "begun-0").exists())
        first.kill()
        first.wait()
        with spread.run_program(*spread.scheduler(port)), spread.run_program(*spread.worker(port)):
            (tmp_path / "go").touch()
            mapping.join(100)
    assert results == [0, 1, 4]


def test_a_scheduler_that_stays_away_is_an_error_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOST_S", 0.5)
    monkeypatch.setattr(engine, "CONNECT_S", 0.5)
    port, began = spread.find_free_port(), time.monotonic()
    with pytest.raises(ConnectionError, match=rf"^stage\.cluster tcp://127\.0\.0\.1:{port} cannot be reached"):
        engine.map_ordered(spread.square, 1, range(3), spread.settings(f"tcp://127.0.0.1:{port}"))
    assert time.monotonic() - began < 30


def test_a_scheduler_without_workers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOST_S", 1.0)
    port = spread.find_free_port()
    with spread.run_program(*spread.scheduler(port)):
        wait_until(lambda: port in {one.laddr.port for one in psutil.net_connections() if one.status == "LISTEN"})
        with pytest.raises(ConnectionError, match="has had no worker"):
            engine.map_ordered(spread.square, 1, range(3), spread.settings(f"tcp://127.0.0.1:{port}"))
