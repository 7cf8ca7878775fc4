"""replay: twelve first dates from April to August, each to the year's end, on the default data; what the policy of
params.yaml keeps of what ungated weekly refits gain, and what that costs beside a weekly search."""

import json
from typing import Any

from tests.benchmarks.loop import server
from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark

PERIOD = {"since": "2013-04-15", "last-date": "2013-08-26", "dates": "12", "until": "2013-12-30"}
QUICK = {"since": "2013-05-01", "last-date": "2013-05-08", "dates": "2", "until": "2013-05-25"}
POLICIES = ("never", "default", "refresh:7d", "ungated:7d", "every:7d")
LOSS = "replay: log loss that the default policy saves ÷ that of ungated weekly refits"
AUC = "replay: AUC that the default policy gains ÷ that of ungated weekly refits"
UNPROMOTED = "replay: first dates of the default policy without a promotion"
WORSE = "replay: first dates of the default policy that end worse than never by 0.0005"
COST = "replay: CPU of the default policy ÷ of a weekly search"


@benchmark(LOSS, AUC, UNPROMOTED, WORSE, COST)
def replay(bench: Bench) -> list[Row]:
    """As a program, in a checkout of its own."""
    period = QUICK if bench.quick else PERIOD
    place = bench.checkout(replay={"trials": 2} if bench.quick else {})
    with server(place) as address:
        lines = run(place, period, address)
    return rows(lines)


def run(place: Checkout, period: dict[str, str], address: str) -> dict[str, Any]:
    options = [text for name, value in period.items() for text in (f"--{name}", value)]
    place.run("flows.replay", *options, "--policies", ",".join(POLICIES), PREFECT_API_URL=address)
    folder = place.home / "replay" / f"{period['since']}_{period['until']}"
    result = json.loads((folder / "replay.json").read_text())
    return {line["policy"]: line for line in result["lines"]}


def rows(lines: dict[str, Any]) -> list[Row]:
    own, weekly = lines["default"], lines["every:7d"]
    detail = "; ".join(describe(line) for line in lines.values())
    share = own["cpu"] / weekly["cpu"]
    return [
        Row(LOSS, kept(own["kept"]), 0.7, command(LOSS), detail, "at least"),
        Row(AUC, kept(own["auc_kept"]), 0.7, command(AUC), signed(own["auc_gain"]), "at least"),
        Row(UNPROMOTED, own["unpromoted_dates"], 0, command(UNPROMOTED), f"of {len(own['walks'])}"),
        Row(WORSE, own["worse_dates"], 1, command(WORSE), f"of {len(own['walks'])}"),
        Row(COST, share, 0.25, command(COST), f"{own['cpu']:,.0f} and {weekly['cpu']:,.0f} s a date"),
    ]


def kept(share: dict[str, float] | None) -> float:
    """0 where ungated refits gain nothing either."""
    return share["value"] if share else 0.0


def describe(line: dict[str, Any]) -> str:
    counts = f"{len(line['walks'])} dates, {line['promotions']} promotions"
    return f"{line['policy']} {line['metric']['value']:.4f} / {line['auc']['value']:.4f} ({counts})"


def signed(interval: dict[str, float | None]) -> str:
    if interval["low"] is None:
        return f"{interval['value']:+.4f}"
    return f"{interval['value']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"


def command(name: str) -> str:
    return f'.venv/bin/python -m tests.benchmarks "{name}"'
