"""page: a verdict as a person reads it in the Prefect UI: what was decided, why, and the figures in plain words."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tasks.promotion.verdict import METRIC_NAMES, Verdict, render_table

Figures = Mapping[str, Any]
Format = Callable[[Any], str]
TABLES = ("baselines", "slices")
HIDDEN = ("course", "evidence_cpu")  # the picture; a part of the costs


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _signed(value: Any) -> str:
    return f"{value:+.4g}"


def _weeks(value: Any) -> str:
    return f"{value} week{'' if value == 1 else 's'}"


# Each figure's words and format, in the order of the page. A figure that is not here has its own name.
WORDS: Mapping[str, tuple[str, Format]] = {
    "kind": ("kind of retrain", str),
    "champion_version": ("judged against", "version {}".format),
    "champion_age": ("age of the champion", _weeks),
    "candidate": ("the candidate's loss", _number),
    "champion": ("the other's loss, on the same rows", _number),
    "gain": ("gain on the holdout", _signed),
    "bound": ("the gain is surely more than", _signed),
    "race_since": ("the race with the champion's recipe began", str),
    "race_gain": ("gain at the same age, a row", _signed),
    "race_bound": ("it is surely more than", _signed),
    "race_high": ("and less than", _signed),
    "race_weeks": ("in", _weeks),
    "race_recipe": ("recipe of the candidate", str),
    "race_opponent": ("recipe of the champion", str),
    "least": ("more than this is asked", _signed),
    "skill": ("skill: the loss of the best constant less the model's", _number),
    "spent_level": ("level of this look", "{:.2%}".format),
    "looks": ("earlier looks at first models", str),
    "looked": ("counts as a look, which gate.backoff follows", lambda value: "yes" if value else "no"),
    "age_band": ("compared with fresh fits", "fits that were {} old".format),
    "age_gain": ("what that age cost a row", _signed),
    "age_bound": ("it surely cost more than", _signed),
    "age_recent": ("in the newest weeks it cost", _signed),
    "age_weeks": ("evidence of", _weeks),
    "guard_bound": ("on its holdout the newest fit surely gains more than", _signed),
    "guard_floor": ("more than this is asked", _signed),
    "shift": ("the predictions of the fit that ships differ from its twin's by", _number),
    "shift_usual": ("so much is usual of past fits", _number),
    "rows": ("rows compared", "{:,}".format),
    "blocks": ("in so many blocks of time", str),
    "block": ("length of a block", str),
    "block_correlation": ("neighbouring blocks go together (correlation)", "{:.2f}".format),
    "seeds": ("models compared, one a seed", lambda value: " and ".join(map(str, value))),
    "error_of_blocks": ("standard error of the gain, by blocks", _number),
    "error_of_seeds": ("and by seeds", _number),
    "calibration_error": ("calibration error", _number),
    "megabytes": ("size of the model", "{:.3g} MB".format),
    "milliseconds": ("time to predict", "{:.3g} ms a row".format),
    "leap_gain": ("gain of the newest fit on its own holdout", _signed),
    "leap_bound": ("that gain is surely more than", _signed),
    "leap_least": ("it must be more than", _signed),
    "evidence_fits": ("past fits made for this look", str),
    "cpu_s": ("CPU", "{:,.0f} s".format),
    "cost": ("cost (policy.cpu_price)", "{:.3g}".format),
}
# They are told beside another figure.
INSIDE = ("metric", "rule", "low", "high", "level", "cpu")


def render_verdict(verdict: Verdict) -> str:
    """The verdict as Markdown."""
    figures = {name: value for name, value in verdict.figures.items() if value is not None and name not in HIDDEN}
    tables = {name: figures.pop(name, None) for name in TABLES}
    parts = [f"# {verdict.outcome}", "\n".join(f"- {reason}" for reason in verdict.reasons)]
    if rows := [{"": label, "value": text} for label, text in _list_rows(figures)]:
        parts.append(render_table(rows))
    parts += [f"## {name.capitalize()}\n\n{render_table(rows)}" for name, rows in tables.items() if rows]
    return "\n\n".join(parts) + "\n"


def _list_rows(figures: Figures) -> Iterator[tuple[str, str]]:
    for name, (label, render) in WORDS.items():
        if name in figures:
            yield label, render(figures[name]) + _list_details(name, figures)
    for name, value in figures.items():
        if name not in WORDS and name not in INSIDE:
            yield name.replace("_", " "), _number(value)


def _list_details(name: str, figures: Figures) -> str:
    """What stands beside a figure in brackets."""
    if name == "candidate" and "metric" in figures:
        return f" ({METRIC_NAMES[figures['metric']]})"
    if name == "gain" and {"low", "high", "level"} <= figures.keys():
        return f" ({figures['level']:.0%} interval {figures['low']:+.4g} to {figures['high']:+.4g})"
    if name == "least" and "rule" in figures:
        return f" (gate.rule: {figures['rule']})"
    if name == "cpu_s" and figures.get("cpu"):
        return f" ({', '.join(f'{part} {seconds:,.0f}' for part, seconds in figures['cpu'].items())})"
    return ""
