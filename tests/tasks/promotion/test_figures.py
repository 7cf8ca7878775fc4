"""tasks.promotion.figures draws what there is, and nothing for what is not there."""

import struct
from pathlib import Path
from typing import Any

import pytest

from tasks.promotion import figures

TRIALS: list[dict[str, Any]] = [
    {"number": i, "state": "COMPLETE", "value": 0.5 - i / 100, "params": {"eta": 0.01 * 2**i, "kind": "ab"[i % 2]}}
    for i in range(6)
] + [{"number": 6, "state": "PRUNED", "value": None, "params": {"eta": 0.3, "kind": "a"}}]


def draw(folder: Path, trials: list[dict[str, Any]], **files: str) -> list[str]:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    pictures = figures.draw_record(folder / "out", trials=trials, curves=folder, importance=folder / "importance.csv")
    for picture in pictures:
        width, height = struct.unpack(">II", picture.read_bytes()[16:24])
        assert min(width, height) > 100
    return [picture.stem for picture in pictures]


def test_every_picture_is_drawn_when_everything_is_there(tmp_path: Path) -> None:
    assert draw(
        tmp_path,
        TRIALS,
        roc="false_positive_rate,true_positive_rate\n0,0\n0.2,0.7\n1,1\n",
        calibration="predicted,observed,rows\n0.1,0.12,50\n0.6,0.5,20\n",
        importance="feature,importance\nstore,0.4\namount,0.1\n",
    ) == ["search", "parameters", "roc", "calibration", "importance"]


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    assert draw(tmp_path, []) == []
    assert draw(tmp_path, TRIALS[:1], roc="false_positive_rate,true_positive_rate\n0,0\n") == ["search"]


def test_a_parameter_without_an_order_has_no_rank_correlation() -> None:
    assert figures._rank_correlation([("a", 0.1), ("b", 0.2), ("a", 0.3)]) == 0
    assert figures._rank_correlation([(1.0, 0.1), (2.0, 0.2), (4.0, 0.3)]) == 1


@pytest.mark.parametrize(
    ("points", "rho"),
    [
        ([(64.0, 0.5), (64.0, 0.6), (64.0, 0.7), (64.0, 0.8), (64.0, 0.9), (256.0, 0.7)], 0.0),
        ([(1.0, 0.5), (2.0, 0.5), (3.0, 0.5)], 0.0),
        ([(1.0, 0.1), (1.0, 0.2), (2.0, 0.2), (3.0, 0.4)], 0.8333),
    ],
)
def test_values_that_are_the_same_share_a_rank(points: list[tuple[Any, float]], rho: float) -> None:
    """Of ranks in the order of the trials the first came to +0.83."""
    assert figures._rank_correlation(points) == pytest.approx(rho, abs=1e-4)
