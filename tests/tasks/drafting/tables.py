"""Made tables as a person may have them, and a checkout to draft them in."""

import math
import shutil
import subprocess
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from tasks.params import yamltext

ROOT = Path(__file__).parents[3]
DAYS = 400
BEGIN = date(2021, 3, 1)


def make_checkout(folder: Path) -> Path:
    """A clone of the project's two files, committed."""
    (folder / "tasks").mkdir(parents=True)
    shutil.copy2(ROOT / "params.yaml", folder)
    shutil.copy2(ROOT / "tasks" / "features.sql", folder / "tasks")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it comes"]):
        mine = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *mine, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


def read_draft(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yamltext.read(folder / "params.yaml")[0]
    return content


def read_features(folder: Path) -> Any:
    """All feature rows, in the order of time."""
    files = str(folder / "data" / "features" / "*.parquet")
    with duckdb.connect() as connection:
        return connection.execute("SELECT * FROM read_parquet($1) ORDER BY _event_time", [files]).df()


def write_lines(path: Path, header: str, lines: Iterable[str], encoding: str = "utf-8") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return path


def make_weather(days: int = DAYS) -> list[tuple[date, float, float, str]]:
    """A day a row: a temperature that follows the season, some wind, and whether it rained, more likely after rain."""
    rng, rows, wet = np.random.default_rng(0), list[tuple[date, float, float, str]](), False
    for number in range(days):
        wet = bool(rng.random() < (0.7 if wet else 0.2))
        temperature = round(10 - 9 * math.cos(number / 58) + float(rng.normal()), 1)
        wind = round(float(rng.gamma(2, 2)), 1)
        rows.append((BEGIN + timedelta(days=number), temperature, wind, "rain" if wet else "sun"))
    return rows


def write_weather(path: Path, days: int = DAYS) -> Path:
    lines = [f"{day},{warm},{wind},{sky}" for day, warm, wind, sky in make_weather(days)]
    return write_lines(path, "day,temperature,wind,sky", lines)


def write_messy(path: Path) -> Path:
    """The same with semicolons, decimal commas, days first, latin-1, and -200 for a missing value."""
    lines = [
        f"{day:%d.%m.%Y};{'-200' if i % 40 == 7 else str(warm).replace('.', ',')};{str(wind).replace('.', ',')};"
        f"{'schön' if sky == 'sun' else 'Regen'}"
        for i, (day, warm, wind, sky) in enumerate(make_weather())
    ]
    return write_lines(path, "Tag;Wärme;Wind;Wetter", lines, "latin-1")


def write_orders(path: Path, days: int = 120) -> Path:
    """Orders at uneven moments: an amount, a store, a customer's address, and whether it came back."""
    rng, lines = np.random.default_rng(1), list[str]()
    for number in range(days * 20):
        moment = datetime(2022, 1, 1) + timedelta(minutes=int(number * 72 + rng.integers(0, 70)))
        store, amount = rng.choice(["north", "south", "west"]), round(float(rng.gamma(2, 30)), 2)
        returned = rng.random() < (0.5 if store == "west" else 0.2)
        refund = amount if returned else 0
        contact = f"a{rng.integers(300)}@example.org"
        lines.append(f"{number + 1},{moment:%m/%d/%Y %I:%M %p},{store},{amount},{contact},{int(returned)},{refund}")
    return write_lines(path, "order_id,ordered,store,amount,contact,returned,refund", lines)


def write_prices(path: Path, months: int = 50) -> Path:
    """Three series in one table, a month a row."""
    rng, lines = np.random.default_rng(2), list[str]()
    for name in ("copper", "tin", "zinc"):
        price = 100.0
        for month in range(months):
            price = round(price * math.exp(rng.normal(0, 0.05)), 2)
            lines.append(f"{name},{date(2015 + month // 12, month % 12 + 1, 1):%b %d %Y},{price}".replace(" 0", " "))
    return write_lines(path, "metal,month,price", lines)
