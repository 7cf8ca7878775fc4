"""calibration: on made tables with several classes, half of them miscalibrated, what it costs and what it keeps."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.training import calibration
from tests.benchmarks.place import Bench
from tests.benchmarks.row import Row, benchmark

WORST = "calibration: log loss on fresh rows after ÷ before, the worst of 200 tables"
KEPT = "calibration: share of the full map's gain that is kept at 3,000 rows"
TABLES = 200
FRESH = 20_000  # rows
SIZES = (300, 600, 1000, 3000)
BENDS = ("temperature", "bias", "vector", "matrix")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """The log loss on fresh rows of one table: as it is, after our calibration, and after an unrestrained full map."""

    rows: int
    bent: bool
    family: str
    before: float
    after: float
    full: float


@benchmark(WORST, KEPT)
def made_tables(bench: Bench) -> list[Row]:
    results = [table(number) for number in range(24 if bench.quick else TABLES)]
    left = sum(result.family == "none" for result in results if not result.bent)
    detail = f"{len(results)} tables, half of them miscalibrated; margins of {left} of the others were left as they are"
    large = [result for result in results if result.bent and result.rows == SIZES[-1]]
    shares = f"{len(large)} miscalibrated tables; the full map is scikit-learn's, without a prior"
    return [
        Row(WORST, max(result.after / result.before for result in results), 1.01, command(WORST), detail),
        Row(KEPT, share_kept(results), 0.8, command(KEPT), shares, "at least"),
    ]


def share_kept(results: list[Result]) -> float:
    large = [result for result in results if result.bent and result.rows == SIZES[-1]]
    return sum(one.before - one.after for one in large) / sum(one.before - one.full for one in large)


def table(number: int) -> Result:
    """A table's margins, in turn as they should be and bent by one of the families; and fresh rows of the same kind."""
    rng = np.random.default_rng([13, number])
    classes, rows = int(rng.integers(3, 7)), SIZES[number // 2 % len(SIZES)]
    spread, level = rng.uniform(0.7, 2), rng.normal(size=classes) * rng.uniform(0, 1.5)
    coef, shift = bend(rng, classes, BENDS[number // 8 % len(BENDS)] if number % 2 else "none")
    drawn = [draw(rng, count, spread, level) for count in (rows, FRESH)]
    (margins, codes), (fresh, wanted) = [((true - shift) @ np.linalg.inv(coef).T, classes_) for true, classes_ in drawn]
    choice = calibration.choose_map(margins, codes)
    before, after = (calibration.log_losses(one, wanted).mean() for one in (fresh, choice.map(fresh)))
    full = full_map_loss(margins, codes, fresh, wanted)
    return Result(rows, bool(number % 2), choice.family, float(before), float(after), full)


def draw(rng: np.random.Generator, rows: int, spread: float, level: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """True margins (rows, classes), and a class drawn by each row's shares."""
    true = rng.normal(size=(rows, len(level))) * spread + level
    noise = rng.gumbel(size=true.shape)
    return true, (true + noise).argmax(axis=1)


def bend(rng: np.random.Generator, classes: int, kind: str) -> tuple[Floats, Floats]:
    """The map that would set the margins right."""
    if kind == "none":
        return np.eye(classes), np.zeros(classes)
    if kind == "temperature":
        return np.eye(classes) * np.exp(rng.uniform(-1, 1)), np.zeros(classes)
    if kind == "bias":
        return np.eye(classes) * np.exp(rng.uniform(-0.5, 0.5)), rng.normal(size=classes)
    if kind == "vector":
        return np.diag(np.exp(rng.uniform(-1, 1, classes))), rng.normal(size=classes) * 0.7
    return (
        np.eye(classes) * np.exp(rng.uniform(-0.7, 0.7)) + rng.normal(size=(classes, classes)) * 0.3,
        rng.normal(size=classes) * 0.7,
    )


def full_map_loss(margins: Floats, codes: Any, fresh: Floats, wanted: Any) -> float:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LogisticRegression(C=1e6, max_iter=2000).fit(margins, codes)
    shares = np.full(fresh.shape, 1e-15)
    shares[:, fitted.classes_] = np.clip(fitted.predict_proba(fresh), 1e-15, 1)
    return float(-np.log(shares[np.arange(len(wanted)), wanted]).mean())


def command(name: str) -> str:
    return f'.venv/bin/python -m tests.benchmarks "{name}"'
