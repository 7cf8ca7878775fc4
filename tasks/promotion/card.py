"""card: what a candidate is, for people: model_card.md beside its run.

The card is written once the verdict is known. Pure, but for `read_facts`. Its sections follow Mitchell et al., Model
Cards for Model Reporting, FAT* 2019.
"""

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks import log, params
from tasks.data import manifest
from tasks.data.manifest import FeaturesManifest, RawManifest
from tasks.params import Params
from tasks.promotion import bill, datacard, evolution, record, tags
from tasks.promotion.contest import estimate_loss, row_losses
from tasks.promotion.interval import Estimate
from tasks.promotion.registry import Version
from tasks.promotion.runs import Runs
from tasks.promotion.verdict import METRIC_NAMES, Verdict, render_table
from tasks.training.holdout import CANDIDATE, Holdout
from tasks.training.model import Model

NAME = "model_card.md"
UNSAID = "Not stated: params.yaml's `card` is the place."
MOST_SLICES = 30  # that the card shows, the largest first
MOST_FEATURES = 12
LINEAGE = (tags.COMMIT, tags.DIRTY, tags.RECORD, tags.RECIPE, tags.ENVIRONMENT, tags.FLOW_RUN)


@dataclass(frozen=True)
class Facts:
    """What the stages say of a candidate.

    Attributes:
        loss: gate.metric on the holdout, with its interval at gate.level.
        period: of the holdout's rows.
        importances: of each feature, the largest first.
    """

    p: Params
    raw: RawManifest
    features: FeaturesManifest
    metrics: Mapping[str, Any]
    leaderboard: Sequence[Mapping[str, Any]]
    slices: Sequence[Mapping[str, Any]]
    tuned: Mapping[str, Any]
    loss: Estimate
    period: tuple[str, str]
    importances: Sequence[tuple[str, float]]


def read_facts(p: Params, folder: Path) -> Facts:
    """Of the workspace that the stages have worked in."""
    reports, models = folder / p.paths.reports, folder / p.paths.models
    twin, held = Model.load(models / "twin.ubj"), Holdout.load(reports / "holdout.parquet")
    losses = row_losses(twin.spec.encode_label(held.label), held.predictions[CANDIDATE], metric=p.gate.metric)
    metrics, leaderboard, slices = (
        json.loads((reports / f"{name}.json").read_text()) for name in ("metrics", "leaderboard", "slices")
    )
    with (reports / "importance.csv").open(newline="", encoding="utf-8") as stream:
        importances = [(row["feature"], float(row["importance"])) for row in csv.DictReader(stream)]
    return Facts(
        p=p,
        raw=RawManifest.read(folder / p.paths.raw),
        features=FeaturesManifest.read(folder / p.paths.features),
        metrics=metrics,
        leaderboard=leaderboard,
        slices=slices,
        tuned=json.loads((models / "tuned.json").read_text()),
        loss=estimate_loss(losses, times=held.times, gate=p.gate),
        period=(str(held.times.min())[:16], str(held.times.max())[:16]),
        importances=importances,
    )


def make_page(p: Params, folder: Path, runs: Runs, verdict: Verdict, *, version: int | None, run_id: str) -> str:
    """The card of a candidate, from the workspace that its stages have worked in and its run."""
    lineage = runs.read_data(run_id).tags
    return render_model_card(read_facts(p, folder), verdict, version=version, run_id=run_id, lineage=lineage)


def make_data_page(p: Params, folder: Path, champion: Version | None, runs: Runs) -> str:
    """The card of a candidate's data, with what changed since the champion's."""
    data = datacard.read_data(p, folder, record.read_entries(folder))
    if champion is None:
        return datacard.render_data_card(data)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            before = _fetch_side(runs, champion, Path(scratch))
        except ValueError as error:  # an older version has no such file, or its params.yaml had other keys
            log.info("what changed since version %s is not known: %s", champion.number, str(error).splitlines()[0])
            return datacard.render_data_card(data)
    changes = evolution.list_changes(before, evolution.Side(p, data.raw))
    return datacard.render_data_card(replace(data, changes=changes, since=champion.number))


def _fetch_side(runs: Runs, version: Version, folder: Path) -> evolution.Side:
    settings = params.load(runs.fetch(version.run_id, "params.yaml", folder))
    runs.fetch(version.run_id, record.RAW, folder).replace(folder / manifest.NAME)
    return evolution.Side(settings, RawManifest.read(folder))


def render_model_card(
    facts: Facts, verdict: Verdict, *, version: int | None, run_id: str, lineage: Mapping[str, str]
) -> str:
    """The card as Markdown.

    Args:
        version: that the model was registered as; None where it was not promoted.
        lineage: the run's tags.
    """
    model = facts.p.registry.model
    sections = {
        "What it is for": _render_purpose(facts),
        "What it was made of": _render_data(facts),
        "How good it is": _render_performance(facts),
        "By slice": _render_slices(facts),
        "Calibration": _render_calibration(facts),
        "What it looks at": _render_importances(facts),
        "Limits": _render_limits(facts),
        "Who judged it": _render_verdict(verdict),
        "Where it comes from": _render_lineage(run_id, lineage),
    }
    title = f"# Model card: {model}, version {version}" if version else f"# Model card: {model}, a candidate"
    return "\n\n".join([title, *(f"## {name}\n\n{text}" for name, text in sections.items() if text)]) + "\n"


def _render_purpose(facts: Facts) -> str:
    card, label = facts.p.card, facts.p.label
    asked = f"It answers `{' '.join(label.expression.split())}` ({label.task}) of a row of `{facts.p.spine.table}`, "
    asked += f"{datacard.spell_lead(facts.p)}."
    owner = f"Ask {card.owner}." if card.owner else ""
    return " ".join(filter(None, [card.purpose or UNSAID, asked, owner]))


def _render_data(facts: Facts) -> str:
    made, tuned, offset = facts.features, facts.tuned, facts.p.train.offset
    above = f" It learns what the label is above `{offset}`, and adds that again." if offset else ""
    return (
        f"{made.rows or 0:,} rows from {made.begin} to {made.end}, {made.labelled or 0:,} of them with "
        f"a label: what was known at {facts.raw.as_of:%Y-%m-%d %H:%M} UTC; {datacard.NAME} tells of them. "
        f"An XGBoost model of {tuned['rounds']} rounds with the parameters "
        f"{', '.join(f'{name} {_spell(value)}' for name, value in tuned['params'].items())}.{above}"
        f"{_render_preference(tuned.get('preferred'))}"
    )


def _render_preference(chosen: Mapping[str, float] | None) -> str:
    """Of a search over loss and size."""
    if chosen is None:
        return ""
    if chosen["trial"] == chosen["best_trial"]:
        return " No smaller model of the search loses about as little."
    return (
        f" It is the smallest of the search whose loss is within a standard error of the best's: "
        f"{chosen['size'] / 1e3:,.0f} kB against {chosen['best_size'] / 1e3:,.0f}, a loss more by "
        f"{chosen['loss_more']:.3g} ± {chosen['error']:.2g} on the folds."
    )


def _spell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _render_performance(facts: Facts) -> str:
    """Of the twin, which has not seen the holdout."""
    loss, metric = facts.loss, METRIC_NAMES[facts.p.gate.metric]
    ends = (
        ""
        if loss.low is None or loss.high is None
        else f" ({facts.p.gate.level:.0%} interval {loss.low:.5g} to {loss.high:.5g})"
    )
    head = (
        f"On the {int(facts.metrics['rows']):,} rows of the holdout, {facts.period[0]} to {facts.period[1]}, which "
        f"neither the search nor this fit has seen, its {metric} is {loss.value:.5g}{ends}."
    )
    return f"{head}\n\n{render_table(_align(facts.leaderboard, facts.p.gate.metric))}"


def _align(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The rows with the same columns: those that all of them have, the model and the gate's metric first."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    names.sort(key=lambda name: (name != "model", name != metric))  # stable: the others stay in their order
    return [{name: row[name] for name in names} for row in rows]


def _render_slices(facts: Facts) -> str:
    ranked = sorted(facts.slices, key=lambda row: -int(row["rows"]))
    if not ranked:
        return ""
    metric, rest = facts.p.gate.metric, len(ranked) - MOST_SLICES
    lines = [
        {
            "slice": f"{row['slice']} = {row['value']}",
            "rows": f"{int(row['rows']):,}",
            METRIC_NAMES[metric]: row[metric],
        }
        for row in ranked[:MOST_SLICES]
    ]
    return render_table(lines) + (f"\n\nAnd {rest} smaller ones, in reports/slices.json." if rest > 0 else "")


def _render_calibration(facts: Facts) -> str:
    error = facts.metrics.get("calibration_error")
    if error is None:
        return ""
    method = facts.p.train.calibration
    gap = f"the mean gap between what it says and what comes true is {error:.4f} on the holdout"
    share, drawn = facts.p.train.undersample, ""
    if share:
        drawn = f" It learnt from {share:.1%} of the most frequent class's rows, and its odds are corrected for it."
    return f"Calibrated by `{method}`; {gap}.{drawn}"


def _render_importances(facts: Facts) -> str:
    total = sum(value for _, value in facts.importances) or 1.0
    lines = [{"feature": name, "share": f"{value / total:.1%}"} for name, value in facts.importances[:MOST_FEATURES]]
    dropped = [f"`{name}`" for name in facts.tuned.get("dropped", ())]
    more = (
        f"\n\nDropped by the search, since they earned nothing on its folds: {', '.join(dropped)}." if dropped else ""
    )
    return f"By mean absolute SHAP value on the holdout:\n\n{render_table(lines)}{more}" if lines else ""


def _render_limits(facts: Facts) -> str:
    p, unlabelled = facts.p, facts.features.unlabelled_share
    lines = [*p.card.limits]
    lines.append(
        f"It knows nothing after {facts.raw.as_of:%Y-%m-%d %H:%M} UTC. The monitor says when its age costs too much."
    )
    if unlabelled:
        lines.append(f"{unlabelled:.1%} of the rows never got a label: it says nothing of how they end.")
    if unseen := facts.metrics.get("unseen_class_rows"):
        lines.append(f"{int(unseen)} rows of the holdout are of classes that it does not know.")
    return "\n".join(f"- {line}" for line in lines)


def _render_verdict(verdict: Verdict) -> str:
    """An approval by a person is one of the reasons."""
    lines = [f"**{verdict.outcome}**", "", *(f"- {reason}" for reason in verdict.reasons)]
    return "\n".join(lines)


def _render_lineage(run_id: str, lineage: Mapping[str, str]) -> str:
    names = {name: name.removeprefix(tags.PREFIX).replace("_", " ") for name in LINEAGE}
    rows = [{"": "MLflow run", "value": f"`{run_id}`"}]
    rows += [{"": label, "value": f"`{lineage[name]}`"} for name, label in names.items() if lineage.get(name)]
    more = f"The software is listed in {bill.NAME}. `evergreen reproduce` makes a version again, byte for byte."
    return f"{render_table(rows)}\n\n{more}"
