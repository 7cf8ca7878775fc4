"""csvtext: a CSV in the form that DuckDB reads.

DuckDB is fast and strict. A CSV that it cannot read, or would read wrongly (line ends of two kinds, empty lines,
another encoding), is rewritten by Python's csv module, which names each fault by its line. Only the delimiter is
guessed. No message shows a value of a row: it may be personal data.
"""

import csv
import itertools
import re
from pathlib import Path

from tasks.runtime.sql import literal, path_text

DELIMITERS = ",;\t|"
CHUNK = 1 << 20
LONGEST_LINE = 2_000_000  # characters that DuckDB takes
CODECS = {"utf-8": "utf-8-sig"}  # a mark at the beginning of the file is no part of it
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
QUOTED = re.compile(r'^ *"(.*)"$', re.DOTALL)
FAULTS = {  # what Python's csv module says, and what is wrong
    "unexpected end of data": ("a quote is opened and never closed. The file may be cut off: export the table again"),
    "field larger": f"a field is longer than {LONGEST_LINE:,} characters. Is a quote left open before it?",
}
OTHER_FAULT = "a quoted field goes on after its closing quote. A quote inside a quoted field is written twice"


def read_layout(file: Path, encoding: str = "utf-8") -> tuple[str, tuple[str, ...]]:
    """A CSV's delimiter and the names of its columns, empty for a column without one.

    The delimiter is the one that the first line has most of, quotes left out. Raises ValueError for no CSV."""
    try:
        with file.open(encoding=CODECS.get(encoding, encoding), newline="") as stream:
            lines = (line for line in stream if line.strip())
            first = next(lines, "")
            delimiter = max(DELIMITERS, key=re.sub(r'"[^"]*"', "", first).count)
            names = next(csv.reader(itertools.chain([first], lines), delimiter=delimiter), [])
    except UnicodeError:
        raise ValueError(explain_bytes(file, encoding)) from None
    except csv.Error:
        raise ValueError("its first line cannot be read as the names of its columns") from None
    return delimiter, tuple(name.strip() for name in names)


def csv_sql(file: Path, delimiter: str, width: int) -> str:
    """The table function that reads it: text columns c0, c1, ... in the order of the header."""
    columns = ", ".join(f"c{i}: 'VARCHAR'" for i in range(width))
    return (
        f"read_csv({literal(path_text(file))}, columns = {{{columns}}}, auto_detect = FALSE, header = TRUE, "
        f"delim = {literal(delimiter)}, quote = '\"', escape = '\"', nullstr = [''], hive_partitioning = FALSE)"
    )


def is_plain(file: Path) -> bool:
    """Whether all lines end alike and none is empty: what DuckDB reads as it is written."""
    pairs = feeds = returns = 0
    with file.open("rb") as stream:
        tail = b"\n"  # an empty first line is an empty line
        while chunk := stream.read(CHUNK):
            text = tail + chunk
            if b"\n\n" in text or b"\n\r\n" in text or b"\r\r" in text:
                return False
            pairs += chunk.count(b"\r\n") + (tail[-1:] == b"\r" and chunk[:1] == b"\n")
            feeds += chunk.count(b"\n")
            returns += chunk.count(b"\r")
            tail = text[-2:]
    return pairs in (feeds, 0) and (returns == pairs or feeds == 0)


def rewrite(file: Path, delimiter: str, width: int, target: Path, encoding: str = "utf-8") -> Path:
    """Write the same rows to `target`, another file, in UTF-8 with one kind of line end. Returns it.

    An empty line becomes a row of empty fields: whoever reads it can count it, and the rows keep their places. Raises
    ValueError that names a faulty line.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    csv.field_size_limit(LONGEST_LINE)
    with (
        file.open(encoding=CODECS.get(encoding, encoding), newline="") as source,
        target.open("w", encoding="utf-8", newline="") as out,
    ):
        rows = csv.reader(source, delimiter=delimiter, strict=True)
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        line, started = 1, False
        try:
            for row in rows:
                if any(field.strip() for field in row):
                    writer.writerow(_fitted(row, width, line) if started else row)
                    started = True
                elif started:
                    writer.writerow([""] * width)
                line = rows.line_num + 1
        except csv.Error as error:
            fault = next((sentence for text, sentence in FAULTS.items() if text in str(error)), OTHER_FAULT)
            raise ValueError(f"line {line}: {fault}") from None
        except UnicodeError:
            raise ValueError(explain_bytes(file, encoding)) from None
    return target


def _fitted(row: list[str], width: int, line: int) -> list[str]:
    """A row with as many fields as the header. Empty fields beyond them are dropped."""
    if len(row) > width and not any(field.strip() for field in row[width:]):
        row = row[:width]
    if len(row) != width:
        raise ValueError(
            f"line {line} has {len(row)} fields, but the header names {width} columns. Mend the line, put "
            "quotes around a field that holds the delimiter, or export the table again"
        )
    # Blanks before a quoted field are no part of it, as DuckDB reads it.
    quotes = [QUOTED.match(field) if field.startswith(" ") else None for field in row]
    return [quote[1].replace('""', '"') if quote else field for field, quote in zip(row, quotes, strict=True)]


def explain_bytes(file: Path, encoding: str) -> str:
    """What is wrong with bytes that are not in the encoding, with the first line that is not."""
    way_out = f"set the source's `encoding`, such as {'cp1252 or latin-1' if encoding == 'utf-8' else 'utf-8'}"
    with file.open("rb") as stream:
        mark = MARKS.get(stream.read(2))
        if mark and encoding == "utf-8":
            return f"it is written in {mark}, not in utf-8: set the source's `encoding: {mark}`"
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return f"line {number} is not {encoding}: {way_out}"
    return f"it is not {encoding}: {way_out}"
