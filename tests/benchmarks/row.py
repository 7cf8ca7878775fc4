"""A row of the table, and the list of what makes rows. Another benchmark is a function and a line above it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

Sense = Literal["at most", "at least"]


@dataclass(frozen=True)
class Row:
    """A measured ratio against its bar. `sound` is false when what was compared did not come to the same result."""

    row: str
    ratio: float
    bar: float
    command: str
    detail: str
    sense: Sense = "at most"
    sound: bool = True

    @property
    def holds(self) -> bool:
        within = self.ratio <= self.bar if self.sense == "at most" else self.ratio >= self.bar
        return self.sound and within

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": round(self.ratio, 3), "holds": self.holds}


@dataclass(frozen=True)
class Benchmark:
    """Rows that come of one measurement."""

    names: tuple[str, ...]
    run: Callable[[Any], list[Row]]


BENCHMARKS: list[Benchmark] = []


def benchmark(*names: str) -> Callable[[Callable[[Any], list[Row]]], Callable[[Any], list[Row]]]:
    """Put a function that measures these rows, in this order, on the list."""

    def enter(run: Callable[[Any], list[Row]]) -> Callable[[Any], list[Row]]:
        BENCHMARKS.append(Benchmark(names, run))
        return run

    return enter


def row(name: str, *, over: list[float], under: list[float], bar: float, detail: str, **more: Any) -> Row:
    """The median of `over` ÷ the median of `under`."""
    command = f'.venv/bin/python -m tests.benchmarks "{name}"'
    return Row(name, median(over) / median(under), bar, command, detail, **more)


def seconds(times: list[float]) -> str:
    """'12.1 s (11.9, 12.1, 12.6)': the median, and what it is the median of."""
    return f"{median(times):.1f} s ({', '.join(f'{one:.1f}' for one in times)})"
