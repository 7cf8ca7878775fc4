"""tasks.promotion.outcome: what a candidate's run shows of its verdict, and its picture."""

import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.promotion import ageing, figures, outcome
from tasks.promotion.ageing import Evidence
from tasks.promotion.gains import MOST_POINTS, Course
from tasks.promotion.ledger import Entry
from tasks.promotion.verdict import Verdict

AS_OF = datetime(2013, 9, 2)
WEEK = timedelta(weeks=1)


def made_evidence(weeks: int) -> Evidence:
    """A fit loses 0.01 a row more for each week of its age, on 70 rows a week."""
    cuts, weeks_of = np.arange(weeks)[:, None, None], np.arange(weeks)[None, :, None]
    noise = np.random.default_rng(0).normal(0, 0.01, (weeks, weeks, 7))
    losses = 10 * (5 + 0.01 * (weeks_of - cuts)) + noise
    return Evidence(np.where(weeks_of < cuts, np.nan, losses), np.full((weeks, 7), 10.0))


def test_the_course_of_age_has_each_weeks_gain_and_the_bound_that_a_look_then_had() -> None:
    evidence = made_evidence(14)
    course = ageing.course_of_age(evidence, (3, 4), AS_OF - 14 * WEEK)
    assert course.gains == pytest.approx([0.035 if week > 3 else 0.03 for week in range(3, 14)], abs=0.002)
    assert course.begins[0] == AS_OF - 11 * WEEK
    look = ageing.measure_ages(evidence.until(12), 3)[-1]
    assert look.band == (3, 4)
    assert course.bounds[12 - 3 - 1] == pytest.approx(float(look.bound.low))
    assert course.bounds[0] is None  # nobody could tell yet


def test_a_course_is_short_in_the_ledger_and_comes_back() -> None:
    begins = [AS_OF + timedelta(days=day) for day in range(200)]
    kept = Course.from_dict(Course("block", "saved", begins, [0.123456789] * 200).to_dict())
    assert (len(kept.gains), kept.gains[0], kept.begins) == (MOST_POINTS, 0.1235, begins[-MOST_POINTS:])


def refresh_of(**more: Any) -> Verdict:
    course = ageing.course_of_age(made_evidence(14), (3, 4), AS_OF - 14 * WEEK).to_dict()
    shown = {"course": course, "metric": "log_loss", "kind": "refresh", "champion_version": 3}
    return Verdict("HOLD", (), {**shown, "age_gain": 0.01, "age_bound": 0.002, **more})


def test_the_picture_has_the_looks_at_the_same_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[figures.Look] = []
    draw = figures.draw_verdict

    def note(path: Path, course: Course, looks: list[figures.Look], **more: Any) -> Path:
        drawn.extend(looks)
        return draw(path, course, looks, **more)

    monkeypatch.setattr(figures, "draw_verdict", note)
    figures_then = {"figures": {"kind": "refresh", "age_bound": -0.001}}
    before = Entry("verdict", "a", AS_OF - WEEK, run="a", champion=3, outcome="REJECT", verdict=figures_then)
    other = Entry("verdict", "b", AS_OF - WEEK, run="b", champion=2, outcome="HOLD", verdict=figures_then)
    path = outcome.draw(tmp_path / "verdict.png", refresh_of(), AS_OF, [before, other])
    assert path
    assert min(struct.unpack(">II", path.read_bytes()[16:24])) > 300
    assert drawn == [figures.Look(AS_OF - WEEK, "REJECT", -0.001), figures.Look(AS_OF, "HOLD", 0.002)]


def test_a_verdict_that_compared_nothing_has_no_picture(tmp_path: Path) -> None:
    assert outcome.draw(tmp_path / "verdict.png", Verdict("HOLD", (), {"kind": "search"}), AS_OF, []) is None


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        ({"gain": 0.1, "bound": 0.05}, (0.1, 0.05)),
        ({"gain": 0.1, "bound": None}, (0.1, None)),
        ({"gain": 0.1, "bound": 0.05, "age_gain": 0.2, "age_bound": 0.15}, (0.2, 0.15)),
        ({}, (None, None)),
    ],
)
def test_the_gain_and_the_bound_are_those_that_decided(shown: dict[str, Any], wanted: tuple[float, float]) -> None:
    assert outcome.find_gain(shown) == wanted


def test_the_opponent_is_the_version_or_the_baselines() -> None:
    assert outcome.find_opponent(refresh_of()) == "version 3"
    assert outcome.find_opponent(refresh_of(champion_version=None)) == "baselines"
