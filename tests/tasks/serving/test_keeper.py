"""tasks.serving.keeper: the API has a copy of whoever serves and of whoever is tried, and of nobody else."""

from pathlib import Path

import pytest

from tasks import params, registry
from tasks.journal import Journal
from tasks.params import Challenger, Params
from tasks.registry import Registry
from tasks.serving import keeper, live
from tests.conftest import FEATURES_SQL, raw_params, write_params
from tests.tasks import small
from tests.tasks.test_predecessor import GOOD_MODEL, LAST, POOR_MODEL, Shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Four versions; the first serves."""
    folder = tmp_path_factory.mktemp("shop")
    known = registry.open_registry(
        params.Registry(model="kept", experiment="kept"), uri=f"sqlite:///{folder}/mlflow.db"
    )
    made = Shop(known, Journal(folder / "logs", str(folder / "parquet")), folder)
    write_params(raw_params("binary", 60), folder)
    (folder / "features.sql").write_text(FEATURES_SQL)
    more = [folder / "params.yaml", folder / "features.sql"]
    made.crown("first", POOR_MODEL, more=more)
    for i in range(2, 6):
        known.register(made.logged(f"run {i}", GOOD_MODEL, more=more), decision=f"held {i}", description="", tags={})
    return made


def put_up(known: Registry, number: int) -> None:
    known.put_up(number, decision=f"begin {number}", as_of=LAST, reasons=["To try it."])


def take_away(known: Registry, number: int) -> None:
    known.take_away(decision=f"end {number}", as_of=LAST, reasons=["Enough."])


def copies(home: Path) -> list[str]:
    return sorted(path.name for path in live.folder(home).iterdir())


def trying(mode: str) -> Params:
    p = small.settings()
    return p.model_copy(update={"serving": p.serving.model_copy(update={"challenger": Challenger(mode=mode)})})


def test_the_challenger_is_copied_and_its_pointer_goes_when_it_goes(shop: Shop, tmp_path: Path) -> None:
    assert keeper.keep(shop.known, tmp_path) == 1
    assert copies(tmp_path) == ["1", "champion.json"]
    put_up(shop.known, 2)
    assert [keeper.keep(shop.known, tmp_path) for _ in range(2)] == [1, 1]
    assert copies(tmp_path) == ["1", "2", "challenger.json", "champion.json"]
    assert (live.served(tmp_path), live.served(tmp_path, live.CHALLENGER)) == (1, 2)
    take_away(shop.known, 2)
    keeper.keep(shop.known, tmp_path)
    assert (live.served(tmp_path), live.served(tmp_path, live.CHALLENGER)) == (1, None)


def test_old_challengers_are_forgotten_and_the_champion_never(shop: Shop, tmp_path: Path) -> None:
    for number in (3, 4, 5):
        put_up(shop.known, number)
        keeper.keep(shop.known, tmp_path)
        take_away(shop.known, number)
    assert copies(tmp_path) == ["1", "4", "5", "challenger.json", "champion.json"]
    keeper.keep(shop.known, tmp_path)


def test_a_server_renews_its_challenger_and_drops_it_at_once(shop: Shop, tmp_path: Path) -> None:
    keeper.keep(shop.known, tmp_path)
    one, p = live.Live(tmp_path), trying("shadow")
    assert list(one.renew(p)) == ["version 1 serves"]
    put_up(shop.known, 2)
    keeper.keep(shop.known, tmp_path)
    assert list(one.renew(p)) == ["version 2 is the challenger"]
    assert one.challenger
    assert (one.challenger.number, list(one.renew(p))) == (2, [])
    assert list(one.renew(trying("none"))) == ["version 2 is no challenger any more"]
    assert list(one.renew(p)) == ["version 2 is the challenger"]
    take_away(shop.known, 2)
    keeper.keep(shop.known, tmp_path)
    assert list(one.renew(p)) == ["version 2 is no challenger any more"]
    assert (one.challenger, one.champion and one.champion.number) == (None, 1)


def test_a_challenger_that_cannot_be_loaded_leaves_the_champion_alone(shop: Shop, tmp_path: Path) -> None:
    keeper.keep(shop.known, tmp_path)
    one = live.Live(tmp_path)
    (live.folder(tmp_path) / live.CHALLENGER).write_text('{"number": 99}')
    assert list(one.renew(trying("share"))) == ["version 1 serves"]
    assert one.challenger is None
