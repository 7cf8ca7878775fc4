"""tasks.training.distributed: one booster by several workers repeats itself, wherever the rows lie and whoever dies."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tasks import params
from tasks.data import storedrows
from tasks.data.featurerows import Rows
from tasks.params import Params, Task
from tasks.promotion.evidence import Fits
from tasks.runtime import engine, gang
from tasks.training import distributed, fitting, matrices, train
from tasks.training.distributed import Fitted, Job
from tasks.training.matrices import Encoded
from tests.conftest import raw_params
from tests.tasks import small

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
ON = {"train.distributed": True, "train.workers": 2, "stage.cluster": "local:2", "stage.threads": 2}
DRAWN = {"max_depth": 4, "eta": 0.3, "subsample": 0.8, "colsample_bytree": 0.7, "max_bin": 32}
MADE = ("twin.ubj", "model.ubj", "twins/1.ubj")


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    engine.close()


def open_rows(folder: Path, task: Task = "binary", **overrides: Any) -> tuple[Params, Rows]:
    p = small.settings(task, **ON, **overrides)
    small.write(folder, small.made_rows(task), p)
    rows = storedrows.open_rows(folder / p.paths.features, memory=1e9)
    seen = fitting.take_training(rows, small.AS_OF, p)
    assert isinstance(seen, Rows)
    return p, seen


def boost(rows: storedrows.AnyRows, p: Params, drawn: dict[str, Any] = DRAWN) -> bytes:
    fitted = train.fit(rows, small.by_hand(drawn, rounds=15), p, threads=1)
    return bytes(fitted.booster.save_raw("ubj"))


def kill_a_worker() -> None:
    workers = [one for one in psutil.Process().children() if any("spawn_main" in part for part in one.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)


# --- the model


@pytest.mark.parametrize("task", TASKS)
def test_a_booster_repeats_itself_whether_parts_lie_in_memory_in_files_or_on_disk(task: Task, tmp_path: Path) -> None:
    more = {"train.categories": "native"} if task == "multiclass" else {}
    p, rows = open_rows(tmp_path, task, **more)
    drawn = DRAWN | ({} if task == "regression" else {"class_weight": 0.5})
    stored = fitting.take_training(storedrows.open_rows(tmp_path / p.paths.features, memory=0), small.AS_OF, p)
    ways = [(rows, "1GB"), (stored, "1GB"), (stored, "200KB"), (stored, "1kB")]
    boosters = {boost(one, change(p, "stage", memory=memory), drawn) for one, memory in ways}
    assert len(boosters) == 1
    assert boosters != {boost(rows, change(p, "train", distributed=False), drawn)}


def change(p: Params, section: str, **values: Any) -> Params:
    return p.model_copy(update={section: getattr(p, section).model_copy(update=values)})


def run_parts(rows: Rows, p: Params, folder: Path) -> list[Fitted]:
    settings = fitting.to_booster_params(DRAWN, p, classes=2) | {"nthread": 1}
    stored = storedrows.write_rows(rows, folder)
    job = Job(matrices.make_spec(rows, p), stored, 2, settings, DRAWN, 15, (), 1e9)
    meet, work = distributed.open_meeting, distributed.fit_part
    return gang.run_together(meet, work, job, 2, p, name="A fit", stop=threading.Event())


def test_each_part_lies_on_a_worker_of_its_own_and_all_end_with_one_booster(tmp_path: Path) -> None:
    p, rows = open_rows(tmp_path)
    parts = run_parts(rows, p, tmp_path)
    assert len({part.process for part in parts} - {(os.uname().nodename, os.getpid())}) == 2
    assert abs(parts[0].rows - parts[1].rows) <= 1
    assert parts[0].rows + parts[1].rows == len(rows)
    assert len({part.digest for part in parts}) == 1
    distributed._check_parts(parts, len(rows))
    with pytest.raises(RuntimeError, match="on a worker of its own"):
        distributed._check_parts([parts[0], replace(parts[1], process=parts[0].process)], len(rows))


def test_the_parts_are_all_rows_in_the_order_of_time(tmp_path: Path) -> None:
    p, rows = open_rows(tmp_path)
    job = Job(matrices.make_spec(rows, p), storedrows.write_rows(rows, tmp_path), 3, {}, {}, 1, (), 1e9)
    times = np.concatenate([job.take_part(place).event_time for place in range(3)])
    np.testing.assert_array_equal(times, rows.event_time)


def test_a_worker_that_is_killed_in_a_fit_changes_nothing(tmp_path: Path) -> None:
    p, rows = open_rows(tmp_path)
    tuned = small.by_hand(DRAWN, rounds=300)
    first, second = (train.fit(rows, tuned, p, threads=1) for _ in range(2))
    killing = threading.Timer(0.2, kill_a_worker)
    killing.start()
    second = train.fit(rows, tuned, p, threads=1)
    killing.join()
    assert first.booster.save_raw("ubj") == second.booster.save_raw("ubj")


# --- the stage, and what fits a recipe elsewhere


def test_twins_folds_refit_and_bags_are_all_distributed_and_repeat_themselves(tmp_path: Path) -> None:
    made = []
    for name, memory in {"a": "1GB", "b": "1kB"}.items():
        p = small.settings(**ON, **{"stage.memory": memory, "train.bag": 2})
        small.write(tmp_path / name, small.made_rows(), p)
        small.tuned(tmp_path / name, p)
        train.train(p, tmp_path / name)
        made.append([(tmp_path / name / p.paths.models / file).read_bytes() for file in MADE])
    assert made[0] == made[1]


def test_past_fits_are_the_recipes_own_fits(tmp_path: Path) -> None:
    p, _ = open_rows(tmp_path, **{"train.calibration": "none"})
    rows = storedrows.open_rows(tmp_path / p.paths.features, memory=1e9)
    assert isinstance(rows, Rows)
    fits = Fits.open(tmp_path / "fits", p, small.by_hand(DRAWN, rounds=5), rows)
    week = fits.list_trainable(small.AS_OF)[-1]
    fits.fit([week])
    cut = fits.grid.begin_of(week)
    (twin,) = train.fit_twins(rows, cut, fits.tuned, p, seeds=1)
    (other,) = train.fit_twins(rows, cut, fits.tuned, change(p, "train", distributed=False), seeds=1)
    (made,) = (tmp_path / "fits").glob("**/model.ubj")
    twin.write(tmp_path / "twin.ubj")
    assert made.read_bytes() == (tmp_path / "twin.ubj").read_bytes()
    assert twin.booster.save_raw("ubj") != other.booster.save_raw("ubj")


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": {"cluster": None}}, r"train\.distributed needs stage\.cluster, but that is null. Set it to local:2"),
        ({"train": {"workers": 3}}, r"train\.workers must not be more than the processes .*, but got 3 for local:2"),
        ({"train": {"workers": 1}}, r"`train\.workers`: Input should be greater than or equal to 2, but got 1"),
        ({"train": {"warm": "13w"}}, r"train\.warm 91d does not go with train\.distributed"),
        ({"train": {"device": "cuda"}}, r"train\.device cuda does not go with train\.distributed"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, dict[str, Any]], said: str) -> None:
    raw = raw_params("binary", 60)
    raw["train"] |= {"distributed": True}
    raw["stage"] |= {"cluster": "local:2"}
    params.validate(raw)
    for section, values in changes.items():
        raw[section] |= values
    with pytest.raises(ValueError, match=said):
        params.validate(raw)


def test_a_stored_recipe_that_needs_workers_says_so_where_there_are_none(tmp_path: Path) -> None:
    p, rows = open_rows(tmp_path)
    with pytest.raises(ValueError, match=r"^train\.distributed needs stage\.cluster, such as local:2"):
        boost(rows, change(p, "stage", cluster=None))


def test_less_rows_than_workers_are_refused(tmp_path: Path) -> None:
    p, rows = open_rows(tmp_path)
    one = Encoded(matrices.make_spec(rows, p), rows).head(1)
    with pytest.raises(ValueError, match="must not be more than the rows, but got 2 for 1 rows"):
        distributed.boost(one, {}, drawn={}, rounds=1, p=p, stop=threading.Event())
