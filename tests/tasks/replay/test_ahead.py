"""ahead: what the processes put on the shelf is what this one would have made."""

from datetime import datetime, timedelta
from pathlib import Path

from tasks.replay import ahead, history
from tasks.replay.history import History, Training
from tests.conftest import BEGIN
from tests.tasks import small

DAY = timedelta(days=1)
SEARCH, REFRESH = BEGIN + 45 * DAY, BEGIN + 52 * DAY
SMALL = {"tune.trials": 2, "tune.rounds": 20, "train.seeds": 1, "split.fold": "5d"}
MODELS = ("model.ubj", "twin.ubj")


def open_past(folder: Path) -> History:
    p = history.reduce_search(small.settings(**SMALL))
    small.write(folder, small.made_rows(), p, BEGIN + 60 * DAY)
    return History(p, folder / p.paths.features, "SELECT 1", folder / "shelf")


def test_processes_make_the_same_candidates_and_past_fits(tmp_path: Path) -> None:
    here, there = open_past(tmp_path / "here"), open_past(tmp_path / "there")
    week = here.open_fits(SEARCH).list_trainable(REFRESH)[-1]
    with ahead.open_workers(there) as workers:
        too_early = Training(BEGIN + 15 * DAY, BEGIN + 15 * DAY)  # it is left out
        for trainings, fits in (
            ([Training(SEARCH, SEARCH)], {}),
            ([Training(REFRESH, SEARCH), too_early], dict[datetime, list[int]]({SEARCH: [week]})),
        ):
            for jobs in workers.start(trainings, fits):
                for job in jobs:
                    job.result()
    here.open_fits(SEARCH).fit([week])
    made = [past.candidate(REFRESH, SEARCH) for past in (here, there)]
    assert [one.is_new for one in made] == [True, False]
    assert all(one.cpu > 0 for one in made)
    for name in MODELS:
        files = [one.folder / past.p.paths.models / name for one, past in zip(made, (here, there), strict=True)]
        assert files[0].read_bytes() == files[1].read_bytes()
    models = [sorted(past.shelf.glob("*-evidence-*/*/model.ubj")) for past in (here, there)]
    assert len(models[0]) == len(models[1]) == 1
    assert models[0][0].read_bytes() == models[1][0].read_bytes()
