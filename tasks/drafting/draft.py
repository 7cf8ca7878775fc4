"""The draft of one table: what goes into params.yaml, the text of features.sql, and every guess with its reason."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from tasks.data import timeline
from tasks.drafting import explain, featuretext, rates
from tasks.drafting.change import make_change
from tasks.drafting.columns import Look, Looked, look_at, type_table
from tasks.drafting.offset import find_offset
from tasks.drafting.rates import Lengths
from tasks.drafting.roles import Roles, Target, find_roles, find_target
from tasks.drafting.shape import Shape, describe_sql, find_shape, find_time, quote_plain
from tasks.drafting.sheet import Sheet
from tasks.drafting.wishes import Guess, Wishes, listed
from tasks.params import Source, spell

DAY = timedelta(days=1)
USUAL_BAD_SHARE = 0.01  # of the rows: more need a higher clean.max_bad_share
ASKED = ("address", "query", "watermark", "password")  # of a source: what only a person can say
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
    has_key: bool
    sections: Mapping[str, Any]
    values: Mapping[str, Any]
    sql: str
    guesses: tuple[Guess, ...]
    rows: int
    features: tuple[str, ...]
    times: timeline.Times
    as_of: datetime


def make_draft(sheet: Sheet, wishes: Wishes, *, source: Source, stem: str) -> Draft:
    """Raises ValueError where the table does not say what a flag must, with the candidates.

    Args:
        source: where the table comes from, as a person has said it.
    """
    looked = look_at(sheet)
    type_table(sheet, looked)
    _, time_columns = find_time(sheet, looked, wishes.time)
    target = find_target(sheet, looked, wishes, time_columns)
    shape = find_shape(sheet, looked, wishes, target.columns)
    roles = find_roles(sheet, looked, shape, target, wishes)
    change = make_change(looked, shape, target, wishes) if wishes.change else None
    if change:
        target = replace(target, expression=change.expression, is_column=False, why="--change says so")
    known_at, deadline, delay = _find_delay(sheet, looked, shape, target, roles, wishes)
    past = featuretext.choose_past(shape, shape.end - shape.begin)
    lengths = rates.choose_lengths(shape, deadline=deadline, reach=past.reach + wishes.lead)
    table = name_table(stem)
    text = featuretext.write_features(table, looked, shape, target, roles, past, lengths.lookback)
    offset = find_offset(sheet, shape, target, wishes, text.own, until=shape.end - lengths.holdout)
    slices = _choose_slices(looked, roles, lengths)
    model = wishes.model or name_model(stem)
    sections: dict[str, Any] = {
        "sources": {table: _source(sheet, looked, shape, known_at, source)},
        "contract": {table: {"key": list(shape.key), "columns": _contract(looked, shape, roles)}},
        "spine": {"table": table, "columns": list(dict.fromkeys([*_spine(shape, roles), *roles.known]))},
    }
    if change:
        sections["sources"][table]["derive"] = {change.before: change.sql}
        sections["contract"][table]["columns"][change.before] = {"type": "DOUBLE", "outcome": True}
    values = _values(table, target, wishes, lengths, slices, model, shape)
    values["train.offset"] = offset.feature if offset else None
    bad = sheet.rows - len(shape.times) + sum(look.misfits for look in looked.columns.values())
    if bad > USUAL_BAD_SHARE * sheet.rows:
        values["clean.max_bad_share"] = min(math.ceil(200 * bad / sheet.rows) / 100, 1)
    guesses = [
        *explain.explain_file(sheet, looked),
        *explain.explain_bad(bad, values, sheet.rows),
        *explain.explain_rows(shape, wishes),
        *explain.explain_columns(shape, roles),
        *explain.explain_dressed(looked),
        *explain.explain_label(target, wishes, delay),
        *explain.explain_offset(offset),
        *explain.explain_lengths(lengths, slices, text, model),
    ]
    as_of = shape.end + deadline
    return Draft(
        table,
        bool(shape.key),
        sections,
        values,
        text.sql,
        tuple(guesses),
        sheet.rows,
        text.features,
        shape.times,
        as_of,
    )


def name_table(stem: str) -> str:
    """A file's name as a table's: a letter, then letters, digits and _."""
    name = re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_").lower() or "rows"
    name = name if name[0].isalpha() else f"t_{name}"
    return name if name != "spine" else "spine_rows"


def name_model(stem: str) -> str:
    return re.sub(r"[^\w.-]+", "-", stem).strip("-_.") or "model"


# --- parts of params.yaml --------------------------------------------------------------------------------------------


def _source(sheet: Sheet, looked: Looked, shape: Shape, known_at: str, source: Source) -> dict[str, Any]:
    section: dict[str, Any] = {name: getattr(source, name) for name in ASKED if getattr(source, name) is not None}
    if looked.nulls:
        section["nulls"] = list(looked.nulls)
    if looked.decimal != ".":
        section["decimal"] = looked.decimal
    if sheet.encoding != "utf-8":
        section["encoding"] = sheet.encoding
    return section | {"event_time": shape.time, "known_at": known_at}


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
    made_of = [name for name in roles.later if name in target.columns]
    if len(made_of) == 1 and (spelling := looked.columns[made_of[0]].spelling):
        sql = spelling.sql(quote_plain(made_of[0]))
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
