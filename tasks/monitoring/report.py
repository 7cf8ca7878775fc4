"""report: Evidently's page of a drift comparison, with our scores and thresholds. The only importer of evidently.

It decides nothing, and its thresholds are not the library's: the samples are only drawn.
"""

import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import TELEMETRY_OFF
from tasks.monitoring.drift import ColumnDrift, Comparison
from tasks.runtime import files
from tasks.training.columns import as_numbers

REPORTS = 20  # that stay, of some megabytes each
SNAPSHOTS = 200  # that stay for Evidently's UI, of half a megabyte each


def draw_report(
    comparison: Comparison,
    before: pa.Table,
    now: pa.Table,
    *,
    scores: Comparison | None = None,
    until: datetime,
    html: Path,
    workspace: Path | None = None,
    project: str = "evergreen",
) -> Path:
    """Draw two samples as HTML that opens offline, and as a snapshot in a workspace that `evidently ui` serves.

    A column that is empty in one of the samples is left out: Evidently refuses it.

    Args:
        comparison: Of the features, all rows of the window.
        before: A sample of the history, with its scores.
        now: A sample of the window, with its scores.
        scores: The comparison of the predictions.
        until: The window's end.
        html: The page to write; older ones beside it are removed.
    """
    os.environ.update(TELEMETRY_OFF | os.environ)  # before evidently is imported
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    shown = [column for column in comparison.columns if column.name not in comparison.gone]
    shown += scores.columns if scores else ()
    columns = [column for column in shown if _has_values(before, column.name) and _has_values(now, column.name)]
    kinds = {column.name: pa.types.is_string(before.schema.field(column.name).type) for column in columns}
    definition = DataDefinition(
        numerical_columns=[name for name, is_text in kinds.items() if not is_text],
        categorical_columns=[name for name, is_text in kinds.items() if is_text],
    )
    data = [Dataset.from_pandas(_to_pandas(table, kinds), data_definition=definition) for table in (now, before)]
    preset = DataDriftPreset(
        columns=list(kinds),
        method=_register_scores(columns),
        per_column_threshold={column.name: round(column.threshold, 4) for column in columns},
        drift_share=_alarming_share(comparison, columns),
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # it divides by the deviation of a constant column
        warnings.simplefilter("ignore")
        report = Report([preset], include_tests=True)
        snapshot = report.run(*data, timestamp=until, name=f"drift to {until:%Y-%m-%d %H:%M}")
    _publish(snapshot, html)
    if workspace:
        _add_snapshot(snapshot, workspace, project, until)
    return html


def _alarming_share(comparison: Comparison, columns: Sequence[ColumnDrift]) -> float:
    """Evidently counts columns to tell whether the dataset drifted: the share at which it says what our signal says."""
    share = sum(column.alarm for column in columns) / max(len(columns), 1)
    return share if comparison.alarm else 1 + (share == 1)


def _has_values(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table[name].null_count < table.num_rows


def _to_pandas(table: pa.Table, kinds: Mapping[str, bool]) -> Any:
    """Evidently puts texts into its page as they are: `</script>` would end it."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, is_text in kinds.items():
        if is_text:
            text = pc.replace_substring(table[name].cast(pa.string()), "<", "‹")
            columns[name] = text.to_pandas().astype(object)
        else:
            columns[name] = as_numbers(table[name])
    return pd.DataFrame(columns)


def _register_scores(columns: Sequence[ColumnDrift]) -> str:
    """The name of a drift method for Evidently that returns the scores which we have already."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    scores = {column.name: column.score for column in columns}

    def look_up(_before: Any, now: Any, _kind: Any, threshold: float) -> tuple[float, bool]:
        return scores[now.name], scores[now.name] > threshold

    types = [ColumnType.Numerical, ColumnType.Categorical]
    register_stattest(StatTest("calibrated", "deviations from its own history", types, 3.0), look_up)
    return "calibrated"


def _publish(snapshot: Any, html: Path) -> None:
    files.publish(html, lambda path: snapshot.save_html(str(path)))
    others = sorted(set(html.parent.glob("*.html")) - {html})  # what was just drawn stays, however old its window
    for old in others[: max(len(others) - REPORTS + 1, 0)]:
        old.unlink(missing_ok=True)


def _add_snapshot(snapshot: Any, folder: Path, name: str, until: datetime) -> None:
    """Into the workspace, in place of an earlier one of the same window: its id is made of the window's end."""
    from evidently.ui.workspace import Workspace

    workspace = Workspace.create(str(folder))
    project = next(iter(workspace.search_project(name)), None) or workspace.create_project(name)
    snapshot_id = uuid.uuid5(project.id, until.isoformat())
    workspace.state.write_snapshot(project.id, snapshot_id, snapshot.to_snapshot_model())
    written = sorted((folder / str(project.id) / "snapshots").glob("*.json"), key=lambda path: path.stat().st_mtime)
    for old in written[:-SNAPSHOTS]:
        workspace.state.delete_snapshot(project.id, uuid.UUID(old.stem))
