"""Files that a person may be given: a table written in many ways and damaged in many more; and what is right of each.

What is right comes from Python's csv and json modules and from parsers with explicit types here, none of which the
project has. Each mutant is made of a number.
"""

import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

BEGIN = datetime(2024, 1, 1)
DAYS, ROWS = 40, 160
AS_OF = BEGIN + timedelta(days=DAYS + 1)
TYPES = {
    "id": "VARCHAR",
    "moment": "TIMESTAMP",
    "name": "VARCHAR",
    "count": "INTEGER",
    "amount": "DOUBLE",
    "day": "DATE",
    "paid": "BOOLEAN",
}
REQUIRED = ("id", "moment")
NAMES = ["Ann", "Bo Ek", 'the "Big" one', "a,b;c", "Zoë", "=1+1", "+123", "@SUM(A1)", "line\none", "O'Neil", "NaN", "-"]
NULLS = ("NA", "null")
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
Cells = dict[str, str]  # of one row, by column


@dataclass
class File:
    """One file as text: its rows, and how they are written."""

    rows: list[Cells]
    columns: list[str]
    delimiter: str = ","
    quoting: int = csv.QUOTE_MINIMAL
    ends: str = "\n"
    tail: str = ""

    def write(self) -> str:
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=self.delimiter, quoting=self.quoting, lineterminator=self.ends)  # type: ignore[arg-type]
        writer.writerow(self.columns)
        writer.writerows([row.get(name, "") for name in self.columns] for row in self.rows)
        return out.getvalue() + self.tail


@dataclass
class Mutant:
    """Files in a folder, with the settings of their source, and the names of what was done to them."""

    random: random.Random
    files: list[File]
    encoding: str = "utf-8"
    settings: dict[str, Any] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    damage: Callable[[bytes], bytes] | None = None

    @property
    def is_damaged(self) -> bool:
        """Whether it may be refused: what is only written in another way may not."""
        return self.damage is not None

    def write(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for place, file in enumerate(self.files):
            data = file.write().encode(self.encoding)
            if self.damage and place == len(self.files) - 1:
                data = self.damage(data)
            paths.append(folder / f"part{place}.csv")
            paths[-1].write_bytes(data)
        return paths


def make_mutant(seed: int) -> Mutant:
    """One to three mutations of the table, the last of them a damage to its bytes at every other number."""
    drawn = random.Random(seed)
    mutant = Mutant(drawn, [File(list(make_rows(drawn)), list(TYPES))])
    for mutate in drawn.sample(WAYS, drawn.randint(1, 3)):
        mutate(mutant)
        mutant.done.append(mutate.__name__)
    if seed % 2:
        damage = drawn.choice(DAMAGES)
        mutant.damage = damage(mutant)
        mutant.done.append(damage.__name__)
    return mutant


def make_rows(drawn: random.Random) -> Iterator[Cells]:
    for place in range(ROWS):
        at = BEGIN + timedelta(minutes=drawn.randrange(DAYS * 24 * 60))
        yield {
            "id": f"r{place:04}",
            "moment": f"{at:%Y-%m-%d %H:%M:%S}",
            "name": drawn.choice(NAMES),
            "count": str(drawn.randint(-5, 2000)),
            "amount": f"{drawn.uniform(-10, 1000):.3f}",
            "day": f"{BEGIN.date() + timedelta(days=drawn.randrange(DAYS))}",
            "paid": drawn.choice(["true", "false"]),
        }


# --- another way to write it ------------------------------------------------------------------------------------------


def reorder_columns(mutant: Mutant) -> None:
    for file in mutant.files:
        mutant.random.shuffle(file.columns)


def shuffle_rows(mutant: Mutant) -> None:
    for file in mutant.files:
        mutant.random.shuffle(file.rows)


def change_delimiter(mutant: Mutant) -> None:
    delimiter = mutant.random.choice([";", "\t", "|"])
    for file in mutant.files:
        file.delimiter = delimiter


def quote_all(mutant: Mutant) -> None:
    for file in mutant.files:
        file.quoting = csv.QUOTE_ALL


def end_lines_otherwise(mutant: Mutant) -> None:
    for file in mutant.files:
        file.ends = "\r\n"


def add_blank_lines(mutant: Mutant) -> None:
    for file in mutant.files:
        file.tail = file.ends * mutant.random.randint(1, 3)


def encode_otherwise(mutant: Mutant) -> None:
    mutant.encoding = mutant.random.choice(["latin-1", "utf-16", "utf-8-sig"])
    if mutant.encoding != "utf-8-sig":
        mutant.settings["encoding"] = mutant.encoding


def write_decimal_commas(mutant: Mutant) -> None:
    mutant.settings["decimal"] = ","
    change(mutant, "amount", lambda text: text.replace(".", ","), share=1)


def write_whole_numbers_as_fractions(mutant: Mutant) -> None:
    change(mutant, "count", lambda text: f"{text}.0" if re.fullmatch(r"-?\d+", text) else text)


def write_truth_as_numbers(mutant: Mutant) -> None:
    change(mutant, "paid", lambda text: {"true": "1", "false": "0"}.get(text, text))


def write_times_otherwise(mutant: Mutant) -> None:
    form = mutant.random.choice(["T", "Z"])
    change(mutant, "moment", lambda text: text.replace(" ", "T") + ("Z" if form == "Z" else ""))


def leave_out_values(mutant: Mutant) -> None:
    mutant.settings["nulls"] = list(NULLS)
    for name in mutant.random.sample([name for name in TYPES if name not in REQUIRED], 3):
        change(mutant, name, lambda _: mutant.random.choice(["", *NULLS]))


def write_misfits(mutant: Mutant) -> None:
    for name, text in (
        ("count", "12.7"),
        ("amount", "a lot"),
        ("day", "2024-02-30"),
        ("paid", "perhaps"),
        ("moment", "soon"),
    ):
        change(mutant, name, lambda _, text=text: text, share=0.03)  # type: ignore[misc]


def repeat_rows(mutant: Mutant) -> None:
    """The same rows again, and rows of the same key with another value."""
    for file in mutant.files:
        again = [dict(row) for row in mutant.random.sample(file.rows, min(8, len(file.rows)))]
        for row in again[::2]:
            row["count"] = "77"
        file.rows += again


def split_files(mutant: Mutant) -> None:
    """Several files, each with its own columns in its own order; what is not required may be missing."""
    (whole,) = mutant.files[:1]
    parts, mutant.files = mutant.random.randint(2, 4), []
    for place in range(parts):
        columns = list(whole.columns)
        mutant.random.shuffle(columns)
        if place:
            columns.remove(mutant.random.choice([name for name in columns if name not in REQUIRED]))
        if mutant.random.random() < 0.5:
            columns.append("unnamed by the contract")
        mutant.files.append(
            File(whole.rows[place::parts], columns, whole.delimiter, whole.quoting, whole.ends, whole.tail)
        )


WAYS = [
    reorder_columns,
    shuffle_rows,
    change_delimiter,
    quote_all,
    end_lines_otherwise,
    add_blank_lines,
    encode_otherwise,
    write_decimal_commas,
    write_whole_numbers_as_fractions,
    write_truth_as_numbers,
    write_times_otherwise,
    leave_out_values,
    write_misfits,
    repeat_rows,
    split_files,
]


def change(mutant: Mutant, name: str, text: Callable[[str], str], *, share: float = 0.3) -> None:
    for file in mutant.files:
        for row in file.rows:
            if mutant.random.random() < share:
                row[name] = text(row[name])


# --- damages ----------------------------------------------------------------------------------------------------------


def truncate(mutant: Mutant) -> Callable[[bytes], bytes]:
    share = mutant.random.random()
    return lambda data: data[: max(1, int(len(data) * share))]


def overwrite_bytes(mutant: Mutant) -> Callable[[bytes], bytes]:
    places = [mutant.random.random() for _ in range(3)]
    values = bytes(mutant.random.randrange(256) for _ in places)

    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        for place, value in zip(places, values, strict=True):
            changed[int(place * len(data))] = value
        return bytes(changed)

    return damage


def insert_text(mutant: Mutant) -> Callable[[bytes], bytes]:
    text = mutant.random.choice(['"', ",", ";", "\n", '""', "\r", "\\", "\0", "é", "   "]).encode(mutant.encoding)
    share = mutant.random.random()
    return lambda data: data[: int(len(data) * share)] + text + data[int(len(data) * share) :]


def drop_the_header(_mutant: Mutant) -> Callable[[bytes], bytes]:
    return lambda data: data.partition(b"\n")[2] or b"x"


DAMAGES = [truncate, overwrite_bytes, insert_text, drop_the_header]


# --- what is right ----------------------------------------------------------------------------------------------------


class Malformed(Exception):  # noqa: N818 (it says what the file is)
    """No table can be read from the file."""


@dataclass(frozen=True)
class Expected:
    """What a reader with explicit types makes of the files.

    Attributes:
        good_rows: by id and month, the values of the rows that are good and that no other row of their key supersedes.
        rows: that were read, but for empty lines.
    """

    good_rows: dict[str, tuple[Any, ...]]
    rows: int


def read_expected(mutant: Mutant, paths: Sequence[Path]) -> Expected:
    """Raises Malformed where a file is no table."""
    rows = [row for place, path in enumerate(paths) for row in _read_file(mutant, path, place)]
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        if row["id"] and row["moment"] is not None:
            groups.setdefault((row["id"], f"{row['moment']:%Y-%m}"), []).append(row)
    good_rows = {}
    for (name, _), group in groups.items():
        good = [row for row in group if row["good"] and row["moment"] < AS_OF]
        if good:
            best = max(good, key=lambda row: row["place"])
            good_rows[f"{name} {best['moment']:%Y-%m}"] = tuple(best[column] for column in TYPES)
    return Expected(good_rows, len(rows))


def _read_file(mutant: Mutant, path: Path, place: int) -> Iterator[dict[str, Any]]:
    encoding = "utf-8-sig" if mutant.encoding == "utf-8" else mutant.encoding
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeError as error:
        raise Malformed(str(error)) from None
    csv.field_size_limit(10_000_000)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mutant.files[place].delimiter, strict=True)
    try:
        lines = [line for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise Malformed(str(error)) from None
    if not lines:
        raise Malformed("no line")
    header = [name.strip() for name in lines[0]]
    if not set(REQUIRED) <= set(header):
        raise Malformed("no header")
    for number, line in enumerate(lines[1:]):
        if len(line) != len(header):
            raise Malformed(f"line {number} has {len(line)} fields")
        cells = dict(zip(header, line, strict=True))
        yield {**_type_row(mutant, cells), "place": (place, number)}


def _type_row(mutant: Mutant, cells: Mapping[str, str]) -> dict[str, Any]:
    nulls = ("", *mutant.settings.get("nulls", ()))
    row: dict[str, Any] = {"good": True}
    for name, kind in TYPES.items():
        text = cells.get(name, "")
        missing = text in nulls or (kind != "VARCHAR" and text.lower() in ("nan", "-nan"))
        value = None if missing else PARSERS[kind](text, mutant.settings.get("decimal", "."))
        row[name] = value
        if (value is None and not missing) or (missing and name in REQUIRED):
            row["good"] = False
    return row


def _parse_number(text: str, decimal: str) -> Decimal | None:
    if decimal == ",":
        if "." in text:
            return None
        text = text.replace(",", ".")
    try:
        number = (
            Decimal(text.strip())
            if re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", text, re.ASCII)
            else None
        )
    except InvalidOperation:
        return None
    return number


def _parse_integer(text: str, decimal: str) -> int | None:
    number = _parse_number(text, decimal)
    return int(number) if number is not None and number == int(number) and abs(number) < 2**31 else None


def _parse_double(text: str, decimal: str) -> float | None:
    number = _parse_number(text, decimal)
    return None if number is None else float(number)


def _parse_time(text: str, _decimal: str) -> datetime | None:
    match = re.fullmatch(
        r"\s*(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[T ](\d{1,2}):(\d{2})(?::(\d{2})(\.\d+)?)?Z?)?\s*", text, re.ASCII
    )
    if not match:
        return None
    try:
        parts = [int(part or 0) for part in match.groups()[:6]]
        return datetime(*parts) + timedelta(seconds=float(match[7] or 0))  # type: ignore[arg-type,misc]
    except ValueError:
        return None


def _parse_date(text: str, decimal: str) -> date | None:
    moment = _parse_time(text, decimal)
    return None if moment is None else moment.date()


def _parse_truth(text: str, _decimal: str) -> bool | None:
    word = text.strip().lower()
    return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(word)


PARSERS: dict[str, Callable[[str, str], Any]] = {
    "VARCHAR": lambda text, _: text,
    "INTEGER": _parse_integer,
    "DOUBLE": _parse_double,
    "TIMESTAMP": _parse_time,
    "DATE": _parse_date,
    "BOOLEAN": _parse_truth,
}


def describe(mutant: Mutant) -> str:
    return json.dumps({"done": mutant.done, "settings": mutant.settings, "files": len(mutant.files)})
