"""tasks.training.calibration: a map of the margins is taken where it surely gains, and no other."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.training import calibration
from tests.benchmarks import calibration as bench

Floats = NDArray[np.float64]


def rows_of(slope: float, *, count: int = 4000, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Margins of two classes that claim 1 / slope times what they know, and the outcomes."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=count)
    return np.column_stack([-truth, truth]) / slope / 2, (rng.random(count) < 1 / (1 + np.exp(-truth))).astype(np.int64)


def test_margins_that_claim_too_much_are_flattened() -> None:
    choice = calibration.choose_map(*rows_of(0.33))
    assert choice.family in ("temperature", "bias")
    assert choice.map.coef[1, 1] == pytest.approx(0.33, rel=0.1)
    margins, codes = rows_of(0.33, seed=1)
    assert (
        calibration.log_losses(choice.map(margins), codes).mean() < calibration.log_losses(margins, codes).mean() - 0.1
    )


def test_margins_that_do_not_rank_the_outcome_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    margins, codes = rows_of(1)
    assert calibration.choose_map(-margins, codes).family == "none"
    assert "do not rank the outcome" in caplog.text


@pytest.mark.parametrize(("count", "classes"), [(0, 1), (40, 3), (200, 1)])
def test_too_few_rows_or_one_class_choose_nothing(count: int, classes: int) -> None:
    margins = np.random.default_rng(0).normal(size=(count, 3)) * 9
    assert calibration.choose_map(margins, np.arange(count) % classes).family == "none"


def test_a_few_rows_of_a_rare_class_make_nothing_worse() -> None:
    """600 rows of four classes, the rarest with two, and margins that are as they should be: a full map lost 5 %."""
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        level = np.log([0.6, 0.25, 0.147, 0.003])
        (margins, codes), (fresh, wanted) = (bench.draw(rng, count, 0.8, level) for count in (600, 20_000))
        codes[np.flatnonzero(codes == 3)[2:]] = 0
        after = calibration.log_losses(calibration.choose_map(margins, codes).map(fresh), wanted)
        ratios.append(after.mean() / calibration.log_losses(fresh, wanted).mean())
    assert max(ratios) <= 1.01


def test_a_class_without_a_row_keeps_the_common_slope_and_no_bias() -> None:
    rng = np.random.default_rng(0)
    margins, codes = bench.draw(rng, 3000, 1.0, np.zeros(4))
    there = codes != 2
    fitted = calibration.fit_map(margins[there] * 3, codes[there], "matrix")
    assert fitted.intercept[2] == 0
    assert fitted.coef[2, [0, 1, 3]].tolist() == fitted.coef[[0, 1, 3], 2].tolist() == [0, 0, 0]
    assert 0.2 < fitted.coef[2, 2] < 0.5


def test_on_made_tables_it_costs_nothing_and_keeps_what_a_full_map_gains() -> None:
    """The short form of the benchmark; `make bench` has 200 tables."""
    results = [bench.table(number) for number in [*range(16), 22, 30, 31]]
    assert max(result.after / result.before for result in results) <= 1.01
    assert bench.share_kept(results) >= 0.8
    assert {result.family for result in results} >= {"none", "bias", "matrix"}


def test_what_is_chosen_does_not_depend_on_the_number_of_threads_or_the_time() -> None:
    from threadpoolctl import threadpool_limits

    margins, codes = bench.draw(np.random.default_rng(1), 2000, 2.0, np.zeros(3))
    with threadpool_limits(1):
        one = calibration.choose_map(margins * 2, codes)
    with threadpool_limits(2):
        two = calibration.choose_map(margins * 2, codes)
    assert one.family == two.family
    assert np.array_equal(one.map.coef, two.map.coef)
