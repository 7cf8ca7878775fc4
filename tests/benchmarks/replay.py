"""replay: May to December on the default data; what the policy of drift and performance saves, and what that costs."""

import json
from typing import Any

from tests.benchmarks.loop import server
from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark

PERIOD, QUICK = ("2013-05-01", "2013-12-31"), ("2013-05-01", "2013-05-20")
POLICIES = ("never", "every:7d", "drift", "performance", "both")
TRIALS = 12  # of each search: half of the default, for a model a week is trained
NEAR = 0.003  # of AUC
LOSS = "replay: log loss that `both` saves ÷ the reach of its interval below"
AUC = "replay: AUC that `both` gains ÷ the reach of its interval below"
WEEKLY = "replay: AUC of `every:7d` over that of `both` ÷ 0.003"
COST = "replay: CPU of the retrains of `both` ÷ of `every:7d`"
SPACED = "replay: AUC of `both` ÷ of as many retrains, evenly spaced"


@benchmark(LOSS, AUC, WEEKLY, COST, SPACED)
def replay(bench: Bench) -> list[Row]:
    """As programs, in one checkout: the second has all its models of the first."""
    period = QUICK if bench.quick else PERIOD
    place = bench.checkout(replay={"trials": 2 if bench.quick else TRIALS})
    with server(place) as address:
        lines = run(place, period, POLICIES, address)
        number = len(lines["both"]["retrains"])
        even = f"spaced:{number}" if number else "never"
        lines |= run(place, period, (even,), address)
    return rows(lines, even)


def run(place: Checkout, period: tuple[str, str], policies: tuple[str, ...], address: str) -> dict[str, Any]:
    since, until = period
    options = ("--since", since, "--until", until, "--policies", ",".join(policies))
    place.run("flows.replay", *options, PREFECT_API_URL=address)
    result = json.loads((place.home / "replay" / f"{since}_{until}" / "replay.json").read_text())
    return {line["policy"]: line for line in result["lines"]}


def rows(lines: dict[str, Any], even: str) -> list[Row]:
    both, weekly = lines["both"], lines["every:7d"]
    lag = weekly["auc"]["value"] - both["auc"]["value"]
    detail = "; ".join(describe(line) for line in lines.values())
    share = both["cpu"] / weekly["cpu"]
    even_auc = both["auc"]["value"] / lines[even]["auc"]["value"]
    return [
        Row(LOSS, reach(both["gain"]), 1, command(LOSS), detail, "at least"),
        Row(AUC, reach(both["auc_gain"]), 1, command(AUC), signed(both["auc_gain"]), "at least"),
        Row(WEEKLY, lag / NEAR, 1, command(WEEKLY), f"{lag:+.4f} of AUC"),
        Row(COST, share, 0.4, command(COST), f"{both['cpu']:,.0f} and {weekly['cpu']:,.0f} s"),
        Row(SPACED, even_auc, 1, command(SPACED), f"{describe(both)}; {describe(lines[even])}", "at least"),
    ]


def reach(gain: dict[str, float]) -> float:
    """How many times its own uncertainty a gain is; above 1 the interval lies above zero."""
    width = gain["value"] - gain["low"]
    return gain["value"] / width if width else 0.0


def describe(line: dict[str, Any]) -> str:
    count = f"{len(line['retrains'])} retrains, {line['promotions']} promoted"
    return f"{line['policy']} {line['metric']['value']:.4f} / {line['auc']['value']:.4f} ({count})"


def signed(interval: dict[str, float]) -> str:
    return f"{interval['value']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"


def command(name: str) -> str:
    return f'.venv/bin/python -m tests.benchmarks "{name}"'
