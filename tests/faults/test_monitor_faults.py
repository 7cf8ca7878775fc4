"""The monitor when others run beside it, when it is killed, and when MLflow goes away and comes back."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import monitor as flow
from tasks import params
from tasks.monitoring import monitor
from tasks.monitoring.signal import Signal, append_signals, read_signals
from tasks.monitoring.signals import SIGNALS
from tasks.monitoring.window import load_watched
from tasks.promotion import registry
from tasks.serving.journal import Journal, open_journal
from tests.conftest import raw_params, write_params
from tests.faults.conftest import Server
from tests.tasks import small
from tests.tasks.monitoring.test_monitor import DAY, FIRST, LAST, Shop, crowned, settings, trained

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
MEASURE = """
import sys, time
from datetime import datetime
from pathlib import Path
from tasks.monitoring import monitor
from tasks.monitoring.window import load_watched
from tasks import params
from tasks.promotion import registry
from tasks.serving.journal import open_journal
p = params.load(Path(sys.argv[1]) / "params.yaml")
known = registry.open_registry(p.registry)
of = load_watched(p, known, known.find_champion())
print("ready", flush=True)
sys.stdin.readline()
journal = open_journal(p.journal)
for end in map(datetime.fromisoformat, sys.argv[2:]):
    monitor.measure_window(of, journal=journal, registry=known, as_of=end)
    print(end, flush=True)
journal.close()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What train and evaluate leave, and params.yaml."""
    folder = trained(tmp_path_factory.mktemp("trained"), settings())
    raw = raw_params("binary", small.DAYS)
    raw["spine"]["columns"] = ["store"]
    raw |= {"monitor": {"window": "4d"}, "policy": {"signals": ["performance"], "windows": 2, "min_rows": 50}}
    write_params(raw, folder)
    return folder


@pytest.fixture
def shop(
    server: Server,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Shop]:
    """A champion on the server, and a journal in a home of its own; this process works in the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    p = params.load(folder / "params.yaml")
    known = registry.open_registry(p.registry)
    champion = known.find_champion() or crowned(known, folder, tmp_path, name=request.node.name)
    journal = open_journal(p.journal)
    one = Shop(load_watched(p, known, champion), known, journal)
    one.lives()
    yield one
    journal.close()
    if server.process is None:
        server.start()


def rows(journal: Journal) -> list[tuple[str, str]]:
    signals = journal.read("signals")
    return [(str(row["event_time"]), row["kind"]) for row in signals.to_pylist()] if signals.num_rows else []


def begin(folder: Path, *ends: str) -> "subprocess.Popen[str]":
    """A process that measures windows, when it is told to."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", MEASURE, str(folder), *ends], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


ENDS = [(FIRST + days * DAY).isoformat() for days in (8, 12, 16, 20)]


@pytest.mark.timeout(300)
def test_two_monitors_at_once_leave_one_row_for_each_signal_and_window(shop: Shop, folder: Path) -> None:
    """Without the flow's lock, which would let one wait for the other."""
    both = [begin(folder, *ENDS) for _ in range(2)]
    for process in both:
        go(process)
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    measured = rows(shop.kept)
    assert len(measured) == len(set(measured)) == len(SIGNALS) * len(ENDS)
    shop.kept.compact()
    assert rows(shop.kept) == measured


@pytest.mark.timeout(300)
def test_a_monitor_that_is_killed_leaves_whole_windows_and_the_next_measures_the_rest(shop: Shop, folder: Path) -> None:
    one = begin(folder, *ENDS)
    go(one)
    assert one.stdout
    one.stdout.readline()
    one.kill()
    one.communicate()
    before = rows(shop.kept)
    assert len(before) % len(SIGNALS) == 0
    assert len(SIGNALS) <= len(before) <= len(SIGNALS) * len(ENDS)
    for end in monitor.find_due(read_signals(shop.kept), shop.kept, shop.of.version, shop.of.p, newest=LAST):
        shop.measures(end)
    assert set(rows(shop.kept)) >= set(before)
    assert sorted({end for end, _ in rows(shop.kept)}) == [item.replace("T", " ") for item in ENDS]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect_server")
def test_a_monitor_that_finds_mlflow_away_asks_again_and_goes_on_when_it_is_back(shop: Shop, server: Server) -> None:
    server.stop()
    back = threading.Timer(4, server.start)
    back.start()
    done = flow.monitor(as_of=LAST, report="never")
    back.join()
    assert {signal.kind for signal in done.signals} >= {"performance", "drift", "quality"}
    assert done.decision
    assert len(rows(shop.kept)) == len(done.signals)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect_server")
def test_where_mlflow_stays_away_the_failure_is_clear_no_signal_is_lost_and_the_next_run_adds_what_is_missing(
    shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = FIRST + 8 * DAY
    first = flow.monitor(as_of=early, report="never")
    before = rows(shop.kept)
    server.stop()
    monkeypatch.setattr(flow, "load_champion", flow.load_champion.with_options(retry_delay_seconds=0.1))
    with pytest.raises(ConnectionError, match=rf"the MLflow server at {server.uri} does not answer"):
        flow.monitor(as_of=LAST, report="never")
    assert rows(shop.kept) == before
    server.start()
    later = flow.monitor(as_of=LAST, report="never")
    later_rows = rows(shop.kept)
    assert len(later_rows) == 4 * len(first.signals)  # the windows that nobody could measure are made good
    assert set(later_rows) > set(before)
    assert later.decision


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect_server")
def test_mlflow_that_goes_away_when_all_is_measured_costs_a_point_on_a_chart_and_nothing_else(
    shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = flow.decide

    def decided(*args: object, **kwargs: object) -> object:
        decision = gone(*args, **kwargs)  # type: ignore[arg-type]
        server.stop()
        return decision

    monkeypatch.setattr(flow, "decide", decided)
    for name in ("send_alerts", "chart"):  # the tasks that come after
        monkeypatch.setattr(flow, name, getattr(flow, name).with_options(retries=1, retry_delay_seconds=0.1))
    with pytest.raises(ConnectionError, match="does not answer"):
        flow.monitor(as_of=LAST, report="never")
    assert len(rows(shop.kept)) == len(SIGNALS)
    (decision,) = shop.kept.read("decisions").to_pylist()
    assert decision["action"] == "wait"


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect_server")
def test_a_look_whose_predecessor_may_serve_no_more_is_told_and_stops_nothing(shop: Shop) -> None:
    version, message = shop.of.version.number, "The one before would be better."
    look = Signal("predecessor", FIRST, LAST - DAY, version, 900, True, message, detail={"looked": True})
    append_signals(shop.kept, [look])
    done = flow.monitor(as_of=LAST, report="never")
    assert done.rolled_back is None
    assert done.decision
    champion = shop.known.find_champion()
    assert champion
    assert champion.number == version
