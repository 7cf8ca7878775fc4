"""datacard: what the rows of a run are, as a page for people: data_card.md beside the run's model.

Its sections follow Gebru et al., Datasheets for Datasets, CACM 2021, as far as a pipeline can know.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.data.manifest import FeaturesManifest, RawManifest, RawTable
from tasks.params import Column, Params, spell
from tasks.promotion import evolution
from tasks.promotion.verdict import render_table

NAME = "data_card.md"
SHORT_HASH = 12
UNSAID = "not stated (card.licences)"


@dataclass(frozen=True)
class Data:
    """What the stages say of a run's rows.

    Attributes:
        quality: quality.json: by table, what became of the rows that were read.
        sample: rows of the features, drawn evenly over time.
        changes: since the data of another version; and that version's number.
        stages: the entries of dvc.lock, by stage.
    """

    p: Params
    raw: RawManifest
    features: FeaturesManifest
    quality: Mapping[str, Any]
    sample: pa.Table
    stages: Mapping[str, Any]
    changes: Sequence[evolution.Change] = ()
    since: int | None = None


def read_data(p: Params, folder: Path, stages: Mapping[str, Any]) -> Data:
    """Of the workspace that the stages have worked in."""
    reports = folder / p.paths.reports
    return Data(
        p=p,
        raw=RawManifest.read(folder / p.paths.raw),
        features=FeaturesManifest.read(folder / p.paths.features),
        quality=json.loads((reports / "quality.json").read_text()),
        sample=pq.read_table(reports / "reference.parquet"),
        stages=stages,
    )


def render_data_card(data: Data) -> str:
    """The card as Markdown."""
    sections = {
        f"What changed since version {data.since}": _render_changes(data),
        "Sources": _render_sources(data),
        "What became of the rows": _render_quality(data),
        "Schema": "\n\n".join(_render_schema(data)),
        "Personal data": _render_personal(data),
        "Features": _render_features(data),
        "Transformations": _render_stages(data),
    }
    parts = [f"# Data card: what was known at {data.raw.as_of:%Y-%m-%d %H:%M} UTC", _render_head(data)]
    return "\n\n".join([*parts, *(f"## {title}\n\n{text}" for title, text in sections.items() if text)]) + "\n"


def _render_head(data: Data) -> str:
    features, label = data.features, data.p.label
    rows, labelled = features.rows or 0, features.labelled or 0
    return "\n".join(
        [
            f"- **Rows**: {rows:,}, one for each row of `{data.p.spine.table}` from {features.begin} to {features.end}",
            f"- **Label**: `{' '.join(label.expression.split())}` ({label.task}), known of {labelled:,} rows; it may "
            f"come {spell(label.deadline)} after the event",
            f"- **Asked** {spell_lead(data.p)}: no feature holds what became known later",
        ]
    )


def spell_lead(p: Params) -> str:
    """When a prediction is asked, in words."""
    return f"{spell(p.features.lead)} before the event" if p.features.lead else "at the event's own time"


def spell_number(value: float) -> str:
    """A number as people read it: 71,220 and 0.01575, and none with an exponent but what is very large or small."""
    if value == 0 or 1e-4 <= abs(value) < 1e15:
        return f"{round(value):,}" if abs(value) >= 9999.5 else f"{value:.4g}"  # 2013 may be a year
    return f"{value:.4g}"


def _render_changes(data: Data) -> str:
    if data.since is None:
        return ""
    rows = evolution.to_rows(list(data.changes))
    return render_table(rows) if rows else "No table, column or rule, and nothing of what the sources deliver."


def _render_sources(data: Data) -> str:
    return render_table(
        [
            {
                "table": name,
                "address": table.address,
                "licence": data.p.card.licences.get(name, UNSAID),
                "period": _spell_period(table),
                "rows": f"{table.rows:,}",
                "SHA-256": f"`{table.fingerprint[:SHORT_HASH]}`",
            }
            for name, table in data.raw.tables.items()
        ]
    )


def _spell_period(table: RawTable) -> str:
    names = sorted(table.periods)
    return f"{names[0]} to {names[-1]}" if len(names) > 1 else "".join(names)


def _render_quality(data: Data) -> str:
    """Each row that was read is in one column of its table's line."""
    counts, reasons = [], []
    for name, table in data.quality["tables"].items():
        raw = data.raw.tables[name]
        good = table["rows"] - table["bad"] - table.get("superseded", 0)
        line = {"read": raw.read, "good": good, "quarantined": table["bad"], "superseded": table.get("superseded", 0)}
        line |= {"empty": raw.empty, "not known yet": raw.later}
        counts.append({"table": name} | {title: f"{count:,}" for title, count in line.items()})
        by_rule = {
            **table.get("by_rule", {}),
            **{f"{rule} (reported)": n for rule, n in table.get("reported", {}).items()},
        }
        reasons += [f"- `{name}`, {rule}: {count:,}" for rule, count in by_rule.items()]
    reasons += [
        f"- `{name}`: not read, since the contract does not name them: {', '.join(table.unread)}"
        for name, table in data.raw.tables.items()
        if table.unread
    ]
    return "\n\n".join(filter(None, [render_table(counts), "\n".join(reasons)]))


def _render_schema(data: Data) -> Iterator[str]:
    for name, raw in data.raw.tables.items():
        table, rows = data.p.contract[name], raw.rows
        missing = data.quality["tables"][name].get("nulls", {})
        lines = [
            {
                "column": column,
                "type": rule.type,
                "missing": f"{missing[column] / rows:.1%}" if rows and column in missing else "",
                "rules": ", ".join(list_rules(rule)),
            }
            for column, rule in table.columns.items()
        ]
        yield f"`{name}`, one row for each {', '.join(table.key or ['row of the source'])}\n\n{render_table(lines)}"


def list_rules(column: Column) -> Iterator[str]:
    """What the contract asks of a column, in words."""
    if column.required:
        yield "required"
    if column.min is not None:
        yield f"at least {column.min:g}"
    if column.max is not None:
        yield f"at most {column.max:g}"
    if column.allowed:
        yield f"one of {len(column.allowed)} values"
    if column.references:
        yield f"is in {column.references}"
    if column.text:
        yield f"spelled anew: {', '.join(column.text)}"
    if column.coarsen is not None:
        yield f"read coarsely: {column.coarsen}"
    if column.outside != "quarantine":
        yield f"beyond a bound: {column.outside}"
    if column.outcome:
        yield "an outcome: unknown until known_at"
    if column.pii:
        yield "personal: a keyed hash"


def _render_personal(data: Data) -> str:
    names = [
        f"`{table}.{column}`"
        for table, contract in data.p.contract.items()
        for column, rule in contract.columns.items()
        if rule.pii
    ]
    if not names:
        return "No column is declared as personal (`pii: true` in the contract)."
    return (
        f"{', '.join(names)}: replaced by a keyed hash before anything is written. The key has the id "
        f"`{data.raw.pii_key_id}` and is not kept with the data."
    )


def _render_features(data: Data) -> str:
    """What a sample of the rows has of each feature."""
    kinds = {column.name: column.kind for column in data.features.columns if column.name in data.sample.column_names}
    lines = [
        {"feature": name, "missing": "", "from": "", "median": "", "to": "", "values": ""}
        | (summarize_numbers(data.sample[name]) if kind == "number" else summarize_categories(data.sample[name]))
        for name, kind in kinds.items()
    ]
    probes, notes = data.features.probes, [f"- {warning}" for warning in data.features.warnings]
    head = f"Of {data.sample.num_rows:,} rows, drawn evenly over time:" if lines else ""
    looked = (
        f"{probes.rows:,} rows at {probes.moments} moments were computed again, to look for leaks." if probes else ""
    )
    return "\n\n".join(filter(None, [head, render_table(lines) if lines else "", looked, "\n".join(notes)]))


def summarize_numbers(column: pa.ChunkedArray) -> dict[str, str]:
    values = column.cast(pa.float64(), safe=False).drop_null()
    summary = {"missing": _spell_missing(column)}
    if not len(values):
        return summary
    low, high = pc.min_max(values).values()
    (median,) = pc.quantile(values, q=0.5)
    places = {"from": low, "median": median, "to": high}
    return summary | {name: spell_number(value.as_py()) for name, value in places.items()}


def summarize_categories(column: pa.ChunkedArray) -> dict[str, str]:
    """How many values there are. None is shown: it may be personal."""
    return {"missing": _spell_missing(column), "values": f"{pc.count_distinct(column).as_py():,}"}


def _spell_missing(column: pa.ChunkedArray) -> str:
    return f"{column.null_count / max(1, len(column)):.1%}"


def _render_stages(data: Data) -> str:
    """The stages from the sources to the features, by the hashes of what they read and made."""
    lines = []
    for name in ("ingest", "clean", "features"):
        outs = data.stages.get(name, {}).get("outs", [])
        made = ", ".join(f"{out['path']} `{out['md5'][:SHORT_HASH]}`" for out in outs)
        lines.append({"stage": name, "program": data.stages.get(name, {}).get("cmd", ""), "made": made})
    return render_table(lines)
