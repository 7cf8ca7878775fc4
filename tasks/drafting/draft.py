"""The draft of one table: what goes into params.yaml, the text of features.sql, and every guess with its reason."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from tasks.data import timeline
from tasks.drafting import featuretext, rates
from tasks.drafting.columns import Look, Looked, look_at, read_one, type_table
from tasks.drafting.rates import Lengths
from tasks.drafting.roles import Roles, Target, find_roles, find_target
from tasks.drafting.shape import Shape, describe_sql, find_shape, find_time, quote_plain
from tasks.drafting.sheet import Sheet
from tasks.drafting.wishes import Guess, Wishes, listed
from tasks.params import spell

DAY = timedelta(days=1)
USUAL_BAD_SHARE = 0.01  # of the rows: more need a higher clean.max_bad_share
NEAR = 0.9  # correlation of a series with itself, from which its change is the better label
DRESSED = re.compile(r"(?=.*[^\d.+-])\W{0,3}\d{1,3}(?:[,.' ]?\d{3})*(?:[.,]\d+)?\W{0,3}")  # 1,234.50, 5 % or $3
MOST_SLICES, SLICE_LEVELS = 2, (2, 20)


@dataclass(frozen=True)
class Draft:
    """
    Attributes:
        sections: sections of params.yaml that are replaced whole.
        values: single settings, by `section.key`.
        sql: tasks/features.sql.
        times: of the rows, in order.
        as_of: when the outcome of the newest row is known.
    """

    table: str
    sections: Mapping[str, Any]
    values: Mapping[str, Any]
    sql: str
    guesses: tuple[Guess, ...]
    rows: int
    features: tuple[str, ...]
    times: timeline.Times
    as_of: datetime


def make_draft(sheet: Sheet, wishes: Wishes, *, address: str, stem: str) -> Draft:
    """Raises ValueError where the table does not say what a flag must, with the candidates."""
    looked = look_at(sheet)
    type_table(sheet, looked)
    _, time_columns = find_time(sheet, looked, wishes.time)
    target = find_target(sheet, looked, wishes, time_columns)
    shape = find_shape(sheet, looked, wishes, target.columns)
    roles = find_roles(sheet, looked, shape, target, wishes)
    change = _find_change(sheet, looked, shape, target, wishes)
    if change and wishes.change:
        target = replace(target, expression=change.expression, is_column=False, why="--change says so")
    known_at, deadline, delay = _find_delay(sheet, looked, shape, target, roles, wishes)
    past = featuretext.choose_past(shape, shape.end - shape.begin)
    lengths = rates.choose_lengths(shape, deadline=deadline, reach=past.reach + wishes.lead)
    table = name_table(stem)
    text = featuretext.write_features(table, looked, shape, target, roles, past, lengths.lookback)
    slices = _choose_slices(looked, roles, lengths)
    model = wishes.model or name_model(stem)
    sections: dict[str, Any] = {
        "sources": {table: _source(sheet, looked, shape, known_at, address)},
        "contract": {table: {"key": list(shape.key), "columns": _contract(looked, shape, roles)}},
        "spine": {"table": table, "columns": list(dict.fromkeys([*_spine(shape, roles), *roles.known]))},
    }
    if change and wishes.change:
        sections["sources"][table]["derive"] = {change.before: change.sql}
        sections["contract"][table]["columns"][change.before] = {"type": "DOUBLE", "outcome": True}
    values = _values(table, target, wishes, lengths, slices, model, shape)
    bad = sheet.rows - len(shape.times) + sum(look.misfits for look in looked.columns.values())
    if bad > USUAL_BAD_SHARE * sheet.rows:
        values["clean.max_bad_share"] = min(math.ceil(200 * bad / sheet.rows) / 100, 1)
    guesses = [
        *_explain_file(sheet, looked),
        *_explain_bad(bad, values, sheet.rows),
        *_explain_rows(shape, wishes),
        *_explain_columns(shape, roles),
        *_explain_dressed(looked),
        *_explain_label(target, wishes, delay),
        *_explain_change(change, wishes),
        *_explain_lengths(lengths, slices, text, model),
    ]
    as_of = shape.end + deadline
    return Draft(table, sections, values, text.sql, tuple(guesses), sheet.rows, text.features, shape.times, as_of)


@dataclass(frozen=True)
class Change:
    """A series' label as the change since the newest value that is known when a prediction is asked.

    Attributes:
        before: the column of that value, and `sql` that makes it.
        nearness: the correlation of a value with it.
    """

    before: str
    sql: str
    expression: str
    nearness: float


def _find_change(sheet: Sheet, looked: Looked, shape: Shape, target: Target, wishes: Wishes) -> Change | None:
    """None where there is none: for events, classes and expressions. Raises ValueError where --change asks for one."""
    name = target.columns[0] if target.columns else ""
    if shape.step is None or target.task != "regression" or not target.is_column or f"{name}_before" in looked.columns:
        if wishes.change:
            raise ValueError("--change needs a series whose label is one column of numbers")
        return None
    by = f"PARTITION BY {', '.join(map(quote_plain, shape.entity))} " if shape.entity else ""
    back = 1 + math.ceil(wishes.lead / shape.step.length)
    column, before = quote_plain(name), f"{name}_before"
    sql = f"lag({column}{f', {back}' if back > 1 else ''}) OVER ({by}ORDER BY {shape.time})"
    nearness = read_one(sheet, f"SELECT corr({column}, b) FROM (SELECT *, {sql} AS b FROM timed)")[0]
    return Change(before, sql, f"{column} - {quote_plain(before)}", nearness or 0.0)


def name_table(stem: str) -> str:
    """A file's name as a table's: a letter, then letters, digits and _."""
    name = re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_").lower() or "rows"
    name = name if name[0].isalpha() else f"t_{name}"
    return name if name != "spine" else "spine_rows"


def name_model(stem: str) -> str:
    return re.sub(r"[^\w.-]+", "-", stem).strip("-_.") or "model"


# --- parts of params.yaml --------------------------------------------------------------------------------------------


def _source(sheet: Sheet, looked: Looked, shape: Shape, known_at: str, address: str) -> dict[str, Any]:
    source: dict[str, Any] = {"address": address}
    if looked.nulls:
        source["nulls"] = list(looked.nulls)
    if looked.decimal != ".":
        source["decimal"] = looked.decimal
    if sheet.encoding != "utf-8":
        source["encoding"] = sheet.encoding
    return source | {"event_time": shape.time, "known_at": known_at}


def _contract(looked: Looked, shape: Shape, roles: Roles) -> dict[str, dict[str, Any]]:
    needed = {*shape.key, *shape.time_columns}
    return {
        name: _column(look, required=name in needed, outcome=name in roles.outcomes)
        for name, look in looked.columns.items()
        if name in needed or name not in roles.empty
    }


def _column(look: Look, *, required: bool, outcome: bool) -> dict[str, Any]:
    column: dict[str, Any] = {"type": look.type}
    if look.spelling and look.spelling.format:
        column["format"] = look.spelling.format
    if required:
        column["required"] = True
    if look.personal:
        column["pii"] = True
    if outcome:
        column["outcome"] = True
    return column


def _spine(shape: Shape, roles: Roles) -> Iterator[str]:
    yield from (name for name in shape.key if name != "event_time" and name not in roles.outcomes)
    yield from shape.entity


def _values(
    table: str, target: Target, wishes: Wishes, lengths: Lengths, slices: tuple[str, ...], model: str, shape: Shape
) -> dict[str, Any]:
    even = shape.step.length if shape.step else timedelta(0)
    window = lengths.window
    return {
        "clock.as_of": None,
        "clock.step": None,
        "ingest.period": lengths.period,
        "label.task": target.task,
        "label.expression": target.expression,
        "label.deadline": spell(lengths.deadline),
        "features.lead": spell(wishes.lead),
        "features.lookback": spell(lengths.lookback),
        "split.holdout": spell(lengths.holdout),
        "split.folds": lengths.folds,
        "split.fold": spell(lengths.fold),
        "tune.halvings": 3 if lengths.is_small else 0,
        "evaluate.costs": {"false_positive": 1, "false_negative": 1} if target.task == "binary" else None,
        "evaluate.slices": list(slices),
        "evaluate.slice_rows": lengths.slice_rows,
        "gate.metric": "rmse" if target.task == "regression" else "log_loss",
        "gate.block": spell(lengths.block),
        "gate.min_rows": lengths.min_rows,
        "gate.min_blocks": lengths.min_blocks,
        "gate.backoff": spell(window),
        "registry.model": model,
        "card.purpose": f"To predict {target.expression} of a row of {table}, {_asked(wishes.lead)}.",
        "card.owner": None,
        "card.limits": [],
        "card.licences": {},
        "monitor.window": spell(window),
        "policy.refresh_every": spell(window),
        "policy.search_every": spell(max(13 * window, 90 * DAY)),
        "policy.cool_down": spell(2 * window),
        "policy.min_rows": lengths.window_rows,
        "replay.step": spell(window),
        "serving.behind": spell(max(DAY, even)),
        "serving.ahead": spell(max(timedelta(hours=2), even)),
        "serving.stale": spell(max(2 * DAY, 2 * even)),
    }


def _asked(lead: timedelta) -> str:
    return f"{spell(lead)} before its event" if lead else "at its event"


def _find_delay(
    sheet: Sheet, looked: Looked, shape: Shape, target: Target, roles: Roles, wishes: Wishes
) -> tuple[str, timedelta, Guess]:
    """SQL for known_at, how late it comes at most, and the guess."""
    flag = "--known-at or --delay"
    if wishes.known_at:
        sql = wishes.known_at
        if sql in looked.columns and (spelling := looked.columns[sql].spelling):
            sql = spelling.sql(quote_plain(sql))
        return sql, _measure(sheet, sql, "--known-at", looked), Guess("known_at", sql, "--known-at says so")
    if wishes.delay is not None:
        sql = f"event_time + INTERVAL {int(wishes.delay.total_seconds())} SECOND" if wishes.delay else "event_time"
        return sql, wishes.delay, Guess("known_at", sql, "--delay says so")
    if shape.step:
        sql = f"event_time + INTERVAL {shape.step.sql}"
        why = f"a row's values are measured over the {shape.step.words}, and known when that ends"
        return sql, shape.step.length, Guess("known_at", sql, why, flag)
    told = [name for name in roles.later if name in target.columns]
    if len(told) == 1 and (spelling := looked.columns[told[0]].spelling):
        sql = spelling.sql(quote_plain(told[0]))
        return sql, _measure(sheet, sql, "known_at", looked), Guess("known_at", sql, "the label is made of it", flag)
    hint = f"; after the event comes {listed(roles.later)}" if roles.later else ""
    why = f"how late the outcome becomes known is not in the table: a day is taken{hint}"
    return "event_time + INTERVAL 1 DAY", DAY, Guess("known_at", "event_time + INTERVAL 1 DAY", why, flag, is_open=True)


def _measure(sheet: Sheet, sql: str, flag: str, looked: Looked) -> timedelta:
    """How late outcomes come by an expression, from the rows."""
    sheet.con.execute("CREATE OR REPLACE TEMP VIEW moments AS SELECT *, _at AS event_time FROM timed")
    kind = describe_sql(sheet, sql, flag, [*looked.columns, "event_time"], table="moments")
    if not kind.startswith(("TIMESTAMP", "DATE")):
        raise ValueError(f"{flag} `{sql}` gives a {kind}, but a DATE or a TIMESTAMP is needed")
    late = sheet.con.sql(
        f"SELECT CAST({sql} AS TIMESTAMP) - _at AS late FROM moments WHERE late IS NOT NULL"
    ).fetchnumpy()["late"]
    if not len(late):
        raise ValueError(f"{flag} `{sql}` is missing in every row")
    return rates.measure_delay(late)


def _choose_slices(looked: Looked, roles: Roles, lengths: Lengths) -> tuple[str, ...]:
    """Known categories of few levels, each of which the holdout has rows enough of."""
    low, high = SLICE_LEVELS
    fits = [
        name
        for name in roles.known
        if looked.columns[name].is_text
        and low <= looked.columns[name].distinct <= min(high, lengths.held_rows // max(lengths.slice_rows, 1))
    ]
    return tuple(fits[:MOST_SLICES])


# --- what was guessed, and why ---------------------------------------------------------------------------------------


def _explain_file(sheet: Sheet, looked: Looked) -> Iterator[Guess]:
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


def _explain_bad(bad: int, values: Mapping[str, Any], rows: int) -> Iterator[Guess]:
    share = values.get("clean.max_bad_share")
    if share is not None:
        why = f"{bad:,} of {rows:,} rows have no time, or a value that fits no type: they go to quarantine"
        yield Guess("clean.max_bad_share", str(share), why, "mend the file, or the contract", is_open=True)


def _explain_rows(shape: Shape, wishes: Wishes) -> Iterator[Guess]:
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
        yield Guess("key", "none", "no column or two tell all rows apart: doubled rows stay", "--key")
    else:
        why = "no two rows agree in it" if not shape.doubled else f"{shape.doubled:,} rows repeat one: the last counts"
        yield Guess("key", ", ".join(shape.key), why, "" if wishes.key else "--key")


def _explain_columns(shape: Shape, roles: Roles) -> Iterator[Guess]:
    for name, why in roles.personal.items():
        change = "remove pii: true in contract where it is none"
        yield Guess(f"{name}.pii", "true", f"{why}: only a keyed hash is kept", change, is_open=True)
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


def _explain_dressed(looked: Looked) -> Iterator[Guess]:
    """Numbers with marks of thousands, a currency or a percent sign, which no type of the contract takes."""
    for name, look in looked.columns.items():
        if look.is_text and not look.personal and look.levels and all(map(DRESSED.fullmatch, look.levels)):
            why = f"numbers such as {look.levels[0]} are read as texts"
            way = "a column of sources.derive, by regexp_replace and TRY_CAST, makes numbers of them"
            yield Guess(name, "VARCHAR", why, way, is_open=True)


def _explain_label(target: Target, wishes: Wishes, delay: Guess) -> Iterator[Guess]:
    yield Guess("label", target.expression, "--label says so" if wishes.label else "the one candidate")
    yield Guess("label.task", target.task, target.why, "" if wishes.task else "--task")
    yield delay
    if target.task == "binary":
        why = "what a false alarm and a miss cost is not in the table: equal is taken"
        yield Guess("evaluate.costs", "1 : 1", why, "evaluate.costs", is_open=True)
    if not wishes.lead:
        yield Guess("features.lead", "0s", "a prediction is asked at the event's own time", "--lead", is_open=True)


def _explain_change(change: Change | None, wishes: Wishes) -> Iterator[Guess]:
    if change and not wishes.change and change.nearness >= NEAR:
        why = (
            f"a value and the one known before it correlate by {change.nearness:.3f}: trees learn the change between "
            "them better, and never predict a value beyond what they have seen"
        )
        yield Guess("change", "not taken", why, "--change predicts the change", is_open=True)


def _explain_lengths(
    lengths: Lengths, slices: tuple[str, ...], text: featuretext.Drafted, model: str
) -> Iterator[Guess]:
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
