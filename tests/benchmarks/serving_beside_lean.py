"""Our API beside a handler that somebody writes by hand: what the journal, the keys, the checks and the bounds cost."""

from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks import serving_bodies as bodies
from tests.benchmarks.place import Bench
from tests.benchmarks.row import Row, benchmark, row
from tests.benchmarks.serving import CONNECTIONS, FEATURES, agree, describe, turns
from tests.benchmarks.serving_load import Load, load
from tests.benchmarks.serving_stand import Server, ours, stand

ONE = "serving: requests/s, 1 row, 1 connection: ours ÷ a lean handler"
SILENT = "serving: requests/s, 1 row, 1 connection, journal off: ours ÷ a lean handler"
MANY_CONNECTIONS = "serving: requests/s, 1 row, 32 connections: ours ÷ a lean handler"
COLUMNS = "serving: rows/s, 1,000 rows a request, columnar: ours ÷ a lean handler"
LEAN = "/predict"


@benchmark(ONE, SILENT, MANY_CONNECTIONS, COLUMNS)
def beside_lean(bench: Bench) -> list[Row]:
    """In turns; those that are not asked idle."""
    place, seconds = stand(bench), 2 if bench.quick else 8
    with (
        ours(place, "tests.benchmarks.serving_lean") as lean,
        ours(place) as mine,
        ours(place, "tests.benchmarks.serving_silent") as silent,
    ):
        urls = {"peer": lean.address + LEAN, "ours": mine.address + FEATURES, "silent": silent.address + FEATURES}
        servers = {"peer": lean, "ours": mine, "silent": silent}
        rows = dict.fromkeys(urls, bodies.single(place, "rows"))
        for name, url in urls.items():
            load(url, rows[name], connections=4, seconds=seconds / 2)  # to warm up
        sound = agree(place, lean, mine, route=LEAN)
        before = read_cpu(servers)
        alone = turns(bench, urls, rows, connections=1, seconds=seconds)
        cpu = {name: after - before[name] for name, after in read_cpu(servers).items()}
        full = turns(bench, urls, rows, connections=CONNECTIONS, seconds=seconds)
        columns = dict.fromkeys(urls, bodies.columnar(place))
        many = turns(bench, urls, columns, connections=1, seconds=seconds)
    each = ", ".join(f"{name} {share * 1e3 / count(alone[name]):.2f}" for name, share in sorted(cpu.items()))
    detail = f"{describe(alone)}; CPU in ms a request: {each}"
    return [
        over(ONE, alone, "ours", bar=0.8, detail=detail, sound=sound),
        over(SILENT, alone, "silent", bar=1.0, detail=detail, sound=sound),
        over(MANY_CONNECTIONS, full, "ours", bar=2.5, detail=describe(full), sound=sound),
        over(COLUMNS, many, "ours", bar=1.2, detail=f"{describe(many)} requests", sound=sound),
    ]


def over(name: str, loads: Mapping[str, list[Load]], side: str, *, bar: float, detail: str, sound: bool) -> Row:
    rates = {key: [one.rate for one in loads[key]] for key in (side, "peer")}
    return row(name, over=rates[side], under=rates["peer"], bar=bar, sense="at least", detail=detail, sound=sound)


def count(loads: list[Load]) -> int:
    return sum(one.requests for one in loads)


def read_cpu(servers: Mapping[str, Server]) -> dict[str, float]:
    """The seconds of CPU that each server's process has used."""
    return {name: _read_cpu(server.process.pid) for name, server in servers.items()}


def _read_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
