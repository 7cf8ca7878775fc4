"""tasks.runtime.locks: one run of a name at a time."""

import os
import threading
from pathlib import Path

import pytest

from tasks.runtime import locks
from tests.waiting import wait_until


def test_a_second_run_waits_and_says_for_whom(tmp_path: Path) -> None:
    said: list[str] = []
    began = threading.Event()

    def second() -> None:
        with locks.take_turn(tmp_path, say=said.append):
            began.set()

    with locks.take_turn(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        wait_until(lambda: said)
        assert not began.is_set()
    thread.join()
    assert began.is_set()
    assert f"process {os.getpid()}, since 20" in said[0]


def test_waiting_for_a_run_has_an_end_that_names_it(tmp_path: Path) -> None:
    with (
        locks.take_turn(tmp_path),
        pytest.raises(TimeoutError, match=f"process {os.getpid()}"),
        locks.take_turn(tmp_path, timeout=0.1),
    ):
        pass
