"""A gang's parts work at once on a worker each, or not at all: one's end is the end of all, and they begin anew."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.runtime import engine, gang
from tasks.runtime.threads import Stopped
from tests.tasks.runtime import spread
from tests.waiting import wait_until


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    engine.close()


def run(work: Callable[[Path, gang.Part], Any], folder: Path, cluster: str = "local:2", **more: Any) -> list[Any]:
    more = {"stop": threading.Event(), **more}
    return gang.run_together(spread.meet, work, folder, 2, spread.settings(cluster), name="A gang", **more)


def count_tries(folder: Path) -> int:
    return len((folder / "tries").read_text())


def test_each_part_is_on_a_worker_of_its_own_and_knows_where_to_meet(tmp_path: Path) -> None:
    parts = run(spread.tell, tmp_path)
    assert [part[:2] for part in parts] == [(0, "127.0.0.1"), (1, "127.0.0.1")]
    assert len({pid for *_, pid in parts}) == 2


def test_a_parts_error_is_raised_as_itself_and_the_part_that_waits_for_it_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^part 1 is wrong$"):
        run(spread.fail_at_1, tmp_path)
    assert count_tries(tmp_path) == 1
    assert not psutil.pid_exists(int((tmp_path / "pid-0").read_text()))


def test_a_part_that_dies_has_all_begin_anew(tmp_path: Path) -> None:
    assert run(spread.die_once_at_1, tmp_path) == [0, 1]
    assert count_tries(tmp_path) == 2


def test_links_that_are_lost_each_time_end_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^A gang failed 3 times in a row\. The last time: part 0 hears nothing"):
        run(spread.lose_link, tmp_path)
    assert count_tries(tmp_path) == 3


def test_who_is_no_longer_wanted_stops_and_so_do_the_parts(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Thread(target=lambda: (wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2), stop.set())).start()
    with pytest.raises(Stopped):
        run(spread.wait_for_ever, tmp_path, stop=stop)
    pids = [int((tmp_path / f"pid-{place}").read_text()) for place in range(2)]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 60)


def test_too_few_workers_are_an_error_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = spread.find_free_port()
    p = spread.settings(f"tcp://127.0.0.1:{port}")
    with spread.run_program(*spread.scheduler(port)), spread.run_program(*spread.worker(port)):
        engine.map_ordered(spread.square, 1, [1], p)  # both are there
        monkeypatch.setattr(engine, "LOST_S", 1.0)
        error = r"^A gang needs 2 workers \(train\.workers\), but stage\.cluster .* has had 1 for 1 s: start more"
        with pytest.raises(ConnectionError, match=error):
            run(spread.tell, tmp_path, str(p.stage.cluster))


def test_gangs_of_one_scheduler_take_turns(tmp_path: Path) -> None:
    """Two at once would each hold a worker that the other waits for."""
    results, folders = list[list[Any]](), [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    threads = [
        threading.Thread(target=lambda folder=folder: results.append(run(spread.tell, folder))) for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(parts) for parts in results] == [2, 2, 2]
