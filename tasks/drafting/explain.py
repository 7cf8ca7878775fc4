"""Every guess of a draft in words, with its reason and the way to say otherwise."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.drafting.columns import Looked
from tasks.drafting.featuretext import Drafted
from tasks.drafting.offset import Offset
from tasks.drafting.rates import Lengths
from tasks.drafting.roles import Roles, Target
from tasks.drafting.shape import Shape
from tasks.drafting.sheet import Sheet
from tasks.drafting.wishes import Guess, Wishes, listed
from tasks.params import spell

DRESSED = re.compile(r"\W{0,3}\d{1,3}(?:[,.' ]?\d{3})*(?:[.,]\d+)?\W{0,3}")  # 1,234.50, 5 % or $3


def explain_file(sheet: Sheet, looked: Looked) -> Iterator[Guess]:
    marks = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", "": "Parquet"}
    file = f"{marks[sheet.delimiter]}, {sheet.encoding}"
    file += ", decimal comma" if looked.decimal == "," else ""
    yield Guess("file", file, f"{sheet.rows:,} rows, {len(sheet.columns) + len(sheet.unusable)} columns")
    if looked.nulls:
        yield Guess("sources.nulls", listed(looked.nulls), "they stand where a value is missing", "sources.nulls")
    for name, why in sheet.unusable.items():
        yield Guess("left out", name, why)
    for name, look in looked.columns.items():
        if look.spelling and look.spelling.other:
            why = f"{look.spelling.other} fits as well: the more even one is taken"
            yield Guess(f"{name}.format", str(look.spelling.format), why, "format in contract", is_open=True)
        elif look.spelling and look.spelling.format and look.distinct > 1:
            yield Guess(f"{name}.format", look.spelling.format, f"all its texts fit, such as {look.levels[0]}")


def explain_bad(bad: int, values: Mapping[str, Any], rows: int) -> Iterator[Guess]:
    share = values.get("clean.max_bad_share")
    if share is not None:
        why = f"{bad:,} of {rows:,} rows have no time, or a value that fits no type: they go to quarantine"
        yield Guess("clean.max_bad_share", str(share), why, "mend the file, or the contract", is_open=True)


def explain_rows(shape: Shape, wishes: Wishes) -> Iterator[Guess]:
    span = f"{shape.begin:%Y-%m-%d} to {shape.end:%Y-%m-%d}"
    yield Guess("event_time", shape.time, f"{span}; times without a zone are UTC", "" if wishes.time else "--time")
    if shape.step:
        whose = f" for each {', '.join(shape.entity)}" if shape.entity else ""
        why = f"a row every {shape.step.words}{whose}: columns are measured together, and only the past predicts"
        yield Guess("rows", "series", why, "--kind events")
    else:
        yield Guess(
            "rows", "events", "they come unevenly: what stands in a row is known when it is asked", "--kind series"
        )
    if not shape.key:
        why = "no column or two tell all rows apart: which do? Without a key score cannot tell its predictions apart"
        yield Guess("key", "none", why, "--key", is_open=True)
    else:
        why = (
            "no two rows agree in it"
            if not shape.doubled
            else f"of rows that repeat one the last counts ({shape.doubled:,} go)"
        )
        yield Guess("key", ", ".join(shape.key), why, "" if wishes.key else "--key")


def explain_columns(shape: Shape, roles: Roles) -> Iterator[Guess]:
    for name, why in roles.personal.items():
        change = "remove pii: true in contract where it is none"
        yield Guess(f"{name}.pii", "true", f"{why}: only a keyed hash is kept; is it personal?", change, is_open=True)
    for name, why in roles.telling.items():
        yield Guess("outcome", name, f"{why}: taken as unknown until the outcome is", f"--known {name}")
    if roles.later:
        yield Guess("outcome", listed(roles.later), "times after the event", f"--known {roles.later[0]}")
    if roles.names:
        yield Guess("no feature", listed(roles.names), "they name a row or a person", f"--known {roles.names[0]}")
    if roles.empty:
        yield Guess("left out", listed(roles.empty), "they have one value or none")
    if shape.kind == "series" and (others := roles.outcomes):
        yield Guess("past only", listed(others), "measured with the label: their past predicts", "--known COLUMN")
    if roles.known:
        is_open = shape.kind == "events"
        why = "they stand in the row: is each known when a prediction is asked?" if is_open else "they never change"
        yield Guess("known", listed(roles.known), why, "--outcome COLUMN where it is not" if is_open else "", is_open)
    for name, why in roles.suspect.items():
        yield Guess("suspect", name, f"{why}: is it known so early?", f"--outcome {name}", is_open=True)


def explain_dressed(looked: Looked) -> Iterator[Guess]:
    """Numbers with marks of thousands, a currency or a percent sign, which no type of the contract takes."""
    for name, look in looked.columns.items():
        dressed = [level for level in look.levels if re.search(r"[^\d.+-]", level)]
        if look.is_text and not look.personal and dressed and all(map(DRESSED.fullmatch, look.levels)):
            why = f"numbers such as {dressed[0]} are read as texts"
            way = "a column of sources.derive, by regexp_replace and TRY_CAST, makes numbers of them"
            yield Guess(name, "VARCHAR", why, way, is_open=True)


def explain_label(target: Target, wishes: Wishes, delay: Guess) -> Iterator[Guess]:
    yield Guess("label", target.expression, "--label says so" if wishes.label else "the one candidate")
    yield Guess("label.task", target.task, target.why, "" if wishes.task else "--task")
    yield delay
    if target.task == "binary":
        why = "what a false alarm and a miss cost is not in the table: equal is taken"
        yield Guess("evaluate.costs", "1 : 1", why, "evaluate.costs", is_open=True)
    if not wishes.lead:
        yield Guess("features.lead", "0s", "a prediction is asked at the event's own time", "--lead", is_open=True)


def explain_offset(offset: Offset | None) -> Iterator[Guess]:
    if offset:
        why = (
            f"the label less it has {offset.left:.2%} of the label's variance: trees learn that, and it is added again"
        )
        yield Guess("train.offset", offset.feature, why, "null")


def explain_lengths(lengths: Lengths, slices: tuple[str, ...], text: Drafted, model: str) -> Iterator[Guess]:
    yield Guess(
        "features.sql", f"{len(text.features)} features", f"lags by {listed(text.groups)}" if text.groups else ""
    )
    held = f"{lengths.held_rows:,} of {lengths.rows:,} rows, the newest"
    yield Guess("split.holdout", spell(lengths.holdout), held)
    yield Guess("split.fold", spell(lengths.fold), f"{lengths.folds} of them before the holdout")
    if lengths.is_small:
        yield Guess("tune.halvings", "3", f"fits of {lengths.rows:,} rows cost little")
    yield Guess(
        "gate.block", spell(lengths.block), f"gate.min_rows {lengths.min_rows:,}, min_blocks {lengths.min_blocks}"
    )
    yield Guess("monitor.window", spell(lengths.window), f"policy.min_rows {lengths.window_rows:,}")
    if slices:
        yield Guess(
            "evaluate.slices", ", ".join(slices), f"few levels, {lengths.slice_rows} rows of each in the holdout"
        )
    yield Guess("registry.model", model, "the file's name", "--model")
    yield Guess("card", "purpose alone", "whom to ask, what it must not be used for, the data's licence", "card", True)
