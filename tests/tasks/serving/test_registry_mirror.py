"""tasks.serving.registry_mirror: the API has a copy of whoever serves and of whoever is tried, and of nobody else."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import params
from tasks.data import state
from tasks.data.state import State
from tasks.params import Challenger, Params
from tasks.promotion import changes, registry
from tasks.promotion.registry import Registry
from tasks.promotion.runs import Runs
from tasks.runtime import files
from tasks.serving import __main__ as process
from tasks.serving import active, registry_mirror, versions
from tasks.serving.journal import Journal
from tasks.serving.tables import Tables
from tasks.training.model import Model
from tests.conftest import FEATURES_SQL, raw_params, write_params
from tests.registries import place_tables
from tests.tasks import small
from tests.tasks.monitoring.test_predecessor import GOOD_MODEL, LAST, POOR_MODEL, Shop
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Four versions; the first serves."""
    folder = tmp_path_factory.mktemp("shop")
    known = registry.open_registry(params.Registry(model="kept", experiment="kept"), uri=place_tables(folder))
    made = Shop(known, Journal(folder / "logs", str(folder / "parquet")), folder)
    write_params(raw_params("binary", 60), folder)
    (folder / "features.sql").write_text(FEATURES_SQL)
    more = [folder / "params.yaml", folder / "features.sql"]
    made.crown("first", POOR_MODEL, more=more)
    for i in range(2, 6):
        known.register(made.logged(f"run {i}", GOOD_MODEL, more=more), decision=f"held {i}", description="", tags={})
    return made


def put_up(known: Registry, number: int) -> None:
    changes.put_up(known, number, decision=f"begin {number}", as_of=LAST, reasons=["To try it."])


def take_away(known: Registry, number: int) -> None:
    changes.take_away(known, decision=f"end {number}", as_of=LAST, reasons=["Enough."])


def copies(home: Path) -> list[str]:
    return sorted(path.name for path in versions.folder(home).iterdir())


def trying(mode: str) -> Params:
    p = small.settings(**{"registry.model": "kept"})
    return p.model_copy(update={"serving": p.serving.model_copy(update={"challenger": Challenger(mode=mode)})})


def test_the_challenger_is_copied_and_its_pointer_goes_when_it_goes(shop: Shop, tmp_path: Path) -> None:
    assert registry_mirror.copy_versions(shop.known, tmp_path) == 1
    assert copies(tmp_path) == ["1", "champion.json"]
    put_up(shop.known, 2)
    assert [registry_mirror.copy_versions(shop.known, tmp_path) for _ in range(2)] == [1, 1]
    assert copies(tmp_path) == ["1", "2", "challenger.json", "champion.json"]
    assert (versions.served_number(tmp_path), versions.served_number(tmp_path, versions.CHALLENGER)) == (1, 2)
    take_away(shop.known, 2)
    registry_mirror.copy_versions(shop.known, tmp_path)
    assert (versions.served_number(tmp_path), versions.served_number(tmp_path, versions.CHALLENGER)) == (1, None)


def test_old_challengers_are_forgotten_and_the_champion_never(shop: Shop, tmp_path: Path) -> None:
    for number in (3, 4, 5):
        put_up(shop.known, number)
        registry_mirror.copy_versions(shop.known, tmp_path)
        take_away(shop.known, number)
    assert copies(tmp_path) == ["1", "4", "5", "challenger.json", "champion.json"]
    registry_mirror.copy_versions(shop.known, tmp_path)


def test_a_server_renews_its_challenger_and_drops_it_at_once(shop: Shop, tmp_path: Path) -> None:
    registry_mirror.copy_versions(shop.known, tmp_path)
    one, p = active.Active(tmp_path), trying("shadow")
    assert list(one.renew(p)) == ["version 1 serves"]
    put_up(shop.known, 2)
    registry_mirror.copy_versions(shop.known, tmp_path)
    assert list(one.renew(p)) == ["version 2 is the challenger"]
    assert one.challenger
    assert (one.challenger.number, list(one.renew(p))) == (2, [])
    assert list(one.renew(trying("none"))) == ["version 2 is no challenger any more"]
    assert list(one.renew(p)) == ["version 2 is the challenger"]
    take_away(shop.known, 2)
    registry_mirror.copy_versions(shop.known, tmp_path)
    assert list(one.renew(p)) == ["version 2 is no challenger any more"]
    assert (one.challenger, one.champion and one.champion.number) == (None, 1)


def test_a_challenger_that_cannot_be_loaded_leaves_the_champion_alone(shop: Shop, tmp_path: Path) -> None:
    registry_mirror.copy_versions(shop.known, tmp_path)
    one = active.Active(tmp_path)
    (versions.folder(tmp_path) / versions.CHALLENGER).write_text('{"number": 99}')
    assert list(one.renew(trying("share"))) == ["version 1 serves"]
    assert one.challenger is None


# --- a copy is of a model's run, not of a number


def foreign(known: Registry, home: Path) -> None:
    """What a registry that was made anew since had left: a version 1 of another run."""
    registry_mirror.copy_versions(known, home)
    here = versions.folder(home)
    for path in (here / "champion.json", here / "1" / "version.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"run_id": "another"}))


def test_version_1_of_another_run_is_no_copy_of_version_1(shop: Shop, tmp_path: Path) -> None:
    foreign(shop.known, tmp_path)
    one = active.Active(tmp_path)
    assert list(one.renew(trying("none"))) == ["version 1 serves"]
    assert one.champion
    assert one.champion.card["run_id"] == "another"
    registry_mirror.copy_versions(shop.known, tmp_path)
    run = shop.known.read_version(1).run_id
    assert versions.read_pointer(tmp_path) == versions.Pointer(1, "kept", run)
    assert list(one.renew(trying("none"))) == ["version 1 serves"]
    assert one.champion.card["run_id"] == run
    assert list(one.renew(trying("none"))) == []


def test_of_another_run_under_the_same_number_the_tables_keep_nothing(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(shop.known, tmp_path)
    one = active.Active(tmp_path)
    assert list(one.renew(trying("none")))
    asked: list[tuple[int, object]] = []

    def refuse(_tables: Tables, version: versions.Champion) -> None:
        asked.append(version.identity)
        raise ValueError("not of this state")

    monkeypatch.setattr(Tables, "_query", refuse)
    one.tables = tables_of(tmp_path)
    assert one.champion
    assert not one.tables.prepare(one.champion)
    registry_mirror.copy_versions(shop.known, tmp_path)
    assert list(one.renew(trying("none"))) == ["version 1 serves"]
    assert [number for number, _ in asked] == [1, 1]
    assert len(set(asked)) == 2


def test_a_copy_of_another_model_does_not_serve(shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry_mirror.copy_versions(shop.known, tmp_path)
    one, p = active.Active(tmp_path), small.settings(**{"registry.model": "another"})
    assert [list(one.renew(p)) for _ in range(3)] == [[], [], []]
    assert one.champion is None
    assert caplog.text.count("must be of registry.model='another'") == 1


def test_a_pointer_whose_copy_is_of_another_run_does_not_serve(shop: Shop, tmp_path: Path) -> None:
    registry_mirror.copy_versions(shop.known, tmp_path)
    pointer = versions.folder(tmp_path) / versions.POINTER
    pointer.write_text('{"number": 1, "model": "kept", "run_id": "another"}')
    one = active.Active(tmp_path)
    assert list(one.renew(trying("none"))) == []
    assert "must be a copy of run another" in one.faults["champion"]


# --- what is odd or torn

ODD = ["", "{", "{}", "null", "[]", '{"number": null}', '{"number": "1"}', '{"number": 0}', "\0"]


@pytest.mark.parametrize("text", ODD)
def test_an_odd_pointer_is_told_of_once_ends_nothing_and_is_written_anew(
    shop: Shop, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry_mirror.copy_versions(shop.known, tmp_path)
    for name in (versions.POINTER, versions.CHALLENGER):
        (versions.folder(tmp_path) / name).write_text(text)
    with pytest.raises(ValueError, match=r"champion\.json.*Remove the file: the mirror copies it anew"):
        versions.served_number(tmp_path)
    one = active.Active(tmp_path)
    assert [list(one.renew(trying("share"))) for _ in range(3)] == [[], [], []]
    assert len(caplog.records) == 2
    assert registry_mirror.copy_versions(shop.known, tmp_path) == 1
    assert list(one.renew(trying("share"))) == ["version 1 serves"]
    assert one.faults == {}
    assert copies(tmp_path) == ["1", "champion.json"]


@pytest.mark.parametrize("name", [*versions.FILES, "version.json"])
def test_a_torn_copy_does_not_serve_and_is_made_anew(shop: Shop, tmp_path: Path, name: str) -> None:
    registry_mirror.copy_versions(shop.known, tmp_path)
    path = versions.folder(tmp_path) / "1" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    one = active.Active(tmp_path)
    assert list(one.renew(trying("none"))) == []
    registry_mirror.copy_versions(shop.known, tmp_path)
    assert path.read_bytes() == whole
    assert list(one.renew(trying("none"))) == ["version 1 serves"]
    assert copies(tmp_path) == ["1", "champion.json"]


def test_a_copy_that_lacks_a_file_is_made_anew_and_one_that_is_whole_is_read_once(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: registry_mirror.Seen = {}
    registry_mirror.copy_versions(shop.known, tmp_path, seen)
    model = versions.folder(tmp_path) / "1" / "model.ubj"
    model.unlink()
    registry_mirror.copy_versions(shop.known, tmp_path, seen)
    assert model.exists()
    registry_mirror.copy_versions(shop.known, tmp_path, seen)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "read_card", lambda _: pytest.fail("it was read again"))
        registry_mirror.copy_versions(shop.known, tmp_path, seen)
    model.write_bytes(model.read_bytes()[:-1] + b"?")  # as long as before
    registry_mirror.copy_versions(shop.known, tmp_path, seen)
    assert versions.load_version(tmp_path, 1)


def test_a_copy_without_hashes_serves_and_is_made_anew(shop: Shop, tmp_path: Path) -> None:
    registry_mirror.copy_versions(shop.known, tmp_path)
    path = versions.folder(tmp_path) / "1" / "version.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in told.items() if name != "files"}))
    assert list(active.Active(tmp_path).renew(trying("none"))) == ["version 1 serves"]
    registry_mirror.copy_versions(shop.known, tmp_path)
    assert json.loads(path.read_text()) == told


def test_a_copy_is_on_the_disk_before_it_has_its_name(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = files.sync, Path.rename
    monkeypatch.setattr(files, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(f"rename {path.name}"), rename(path, to))[1])
    registry_mirror.copy_versions(shop.known, tmp_path)
    above, *done = done
    assert above == tmp_path.name  # it holds the new folder of all copies
    assert set(done[:4]) == {*versions.FILES, "version.json"}
    copy = done[4]
    assert copy.startswith(registry_mirror.NEW)
    assert done[4:8] == [copy, "rename 1", f"rename {copy}", "serving"]


def test_a_copy_that_is_replaced_while_it_is_read_is_not_mixed_with_the_next(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(shop.known, tmp_path)
    read = Model.load

    def late(path: Path) -> Model:
        registry_mirror.copy_versions(shop.known, tmp_path)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "load", late)
        with pytest.raises(ValueError, match="copied anew while it was read"):
            versions.load_version(tmp_path, 1)
    assert versions.load_version(tmp_path, 1)


def test_a_copy_that_fails_leaves_nothing_behind(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runs, "fetch", fails)
    with pytest.raises(ValueError, match="no artifact"):
        registry_mirror.copy_versions(shop.known, tmp_path)
    assert copies(tmp_path) == []


def fails(_runs: Runs, run_id: str, *_: object) -> Path:
    raise ValueError(f"run {run_id} has no artifact")


@pytest.mark.parametrize("champion", [True, False])
def test_whoever_lost_goes_though_neither_the_next_nor_the_champion_can_be_copied(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, champion: bool
) -> None:
    put_up(shop.known, 2)
    registry_mirror.copy_versions(shop.known, tmp_path)
    take_away(shop.known, 2)
    if champion:
        (versions.folder(tmp_path) / "1" / "model.ubj").unlink()
    else:
        put_up(shop.known, 3)
    monkeypatch.setattr(Runs, "fetch", fails)
    with pytest.raises(ValueError, match="no artifact"):
        registry_mirror.copy_versions(shop.known, tmp_path)
    assert (versions.served_number(tmp_path), versions.served_number(tmp_path, versions.CHALLENGER)) == (1, None)
    if not champion:
        take_away(shop.known, 3)


def test_a_champion_that_cannot_be_copied_does_not_hold_up_the_challenger(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, first = Runs.fetch, shop.known.read_version(1).run_id

    def partly(runs: Runs, run_id: str, *more: object) -> Path:
        return fails(runs, run_id) if run_id == first else fetch(runs, run_id, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Runs, "fetch", partly)
    put_up(shop.known, 2)
    with pytest.raises(ValueError, match=f"run {first} has no artifact"):
        registry_mirror.copy_versions(shop.known, tmp_path)
    take_away(shop.known, 2)
    assert (versions.served_number(tmp_path), versions.served_number(tmp_path, versions.CHALLENGER)) == (None, 2)


# --- a mirror that lives


def test_a_keeper_that_ends_is_begun_anew_and_ends_with_the_server(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    script = f"import os; open({str(begun)!r}, 'a').write(f'{{os.getpid()}} '); import time; time.sleep(60)"
    with process.keep_mirror([sys.executable, "-c", script], pause=0.01):
        wait_until(lambda: begun.exists() and begun.read_text().count(" ") == 1)
        os.kill(int(begun.read_text()), 9)
        wait_until(lambda: begun.read_text().count(" ") == 2)
        last = int(begun.read_text().split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_keeper_that_cannot_be_begun_does_not_end_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with process.keep_mirror([str(tmp_path / "none")], pause=0.01):
        wait_until(lambda: caplog.text.count("it is begun anew") > 2)


def test_each_look_that_finds_all_well_is_told_by_its_age(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "open_registry", lambda _: shop.known)
    p = trying("none")
    monkeypatch.setattr(registry_mirror, "POLL_S", 0.05)
    assert registry_mirror.copy_age_s(tmp_path) is None
    looks(p, tmp_path, lambda: registry_mirror.copy_age_s(tmp_path) is not None)
    os.utime(versions.folder(tmp_path) / registry_mirror.LOOKED, (0, 0))
    old = registry_mirror.copy_age_s(tmp_path)
    assert old
    assert old > 1e9
    (versions.folder(tmp_path) / "1" / "model.ubj").unlink()
    with monkeypatch.context() as patch:
        asked: list[str] = []

        def fail(runs: Runs, run_id: str, *more: object) -> Path:
            asked.append(run_id)
            return fails(runs, run_id, *more)

        patch.setattr(Runs, "fetch", fail)
        looks(p, tmp_path, lambda: len(asked) >= 3)
    assert (registry_mirror.copy_age_s(tmp_path) or 0) > 1e9
    looks(p, tmp_path, lambda: (registry_mirror.copy_age_s(tmp_path) or 0) < 60)


def looks(p: Params, home: Path, holds: Callable[[], bool]) -> None:
    """A mirror, until this holds."""
    stop = threading.Event()
    thread = threading.Thread(target=registry_mirror.watch, args=[p, home, stop])
    thread.start()
    try:
        wait_until(holds)
    finally:
        stop.set()
        thread.join()


# --- features that the state cannot make


def tables_of(home: Path) -> Tables:
    moment = small.AS_OF
    return Tables(trying("none"), State(home, moment, moment, moment, "made"), {})


def test_a_champion_whose_features_cannot_be_made_waits_and_the_present_one_serves(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unfit = {2}
    monkeypatch.setattr(Tables, "prepare", lambda _, one: one.number not in unfit)
    registry_mirror.copy_versions(shop.known, tmp_path)
    one = active.Active(tmp_path, tables=tables_of(tmp_path))
    assert list(one.renew(trying("none"))) == ["version 1 serves"]
    put_up(shop.known, 2)
    registry_mirror.copy_versions(shop.known, tmp_path)
    take_away(shop.known, 2)
    here = versions.folder(tmp_path)
    (here / versions.CHALLENGER).replace(here / versions.POINTER)
    assert [list(one.renew(trying("none"))) for _ in range(3)] == [[], [], []]
    assert (one.champion and one.champion.number, caplog.text.count("version 1 serves on")) == (1, 1)
    unfit.clear()
    assert list(one.renew(trying("none"))) == ["version 2 serves"]


def test_where_neither_ones_features_can_be_made_the_new_one_is_in_place(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tables, "prepare", lambda *_: False)
    registry_mirror.copy_versions(shop.known, tmp_path)
    champion = replace(versions.load_version(tmp_path, 1), number=9)
    one = active.Active(tmp_path, champion, tables=tables_of(tmp_path))
    assert list(one.renew(trying("none"))) == ["version 1 serves"]


def test_whose_features_cannot_be_made_is_no_challenger(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unfit = {2}
    monkeypatch.setattr(Tables, "prepare", lambda _, one: one.number not in unfit)
    put_up(shop.known, 2)
    registry_mirror.copy_versions(shop.known, tmp_path)
    take_away(shop.known, 2)
    one = active.Active(tmp_path, tables=tables_of(tmp_path))
    assert list(one.renew(trying("share"))) == ["version 1 serves"]
    assert (list(one.renew(trying("share"))), one.challenger) == ([], None)
    assert caplog.text.count("it is no challenger") == 1
    unfit.clear()
    assert list(one.renew(trying("share"))) == ["version 2 is the challenger"]


def test_a_challenger_goes_with_the_state_that_could_make_its_features(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, unfit = trying("share"), set[int]()
    monkeypatch.setattr(Tables, "prepare", lambda _, one: one.number not in unfit)
    monkeypatch.setattr(Tables, "load", lambda *_: tables_of(tmp_path))
    put_up(shop.known, 2)
    registry_mirror.copy_versions(shop.known, tmp_path)
    take_away(shop.known, 2)
    one = active.Active(tmp_path)
    assert list(one.renew(p)) == ["version 1 serves", "version 2 is the challenger"]
    unfit.add(2)
    monkeypatch.setattr(
        state, "read_current", lambda _: replace(tables_of(tmp_path).state, kind=state.identify_tables(p))
    )
    assert len(list(one.renew(p))) == 1
    assert (one.champion and one.champion.number, one.challenger) == (1, None)
