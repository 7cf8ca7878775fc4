"""Of a table that is written in another way, or damaged, no row gets lost and no value is wrong, or it is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tasks.data import mutant_runs, mutants


@pytest.mark.parametrize("seed", range(1000, 1024))
def test_a_mutant_is_read_rightly_or_refused_clearly(seed: int, tmp_path: Path) -> None:
    outcome = mutant_runs.run(seed, tmp_path)
    assert outcome.faults == (), mutants.describe(outcome.mutant)


def test_a_wrong_value_a_lost_row_and_a_row_too_many_are_seen(tmp_path: Path) -> None:
    assert mutant_runs.run(0, tmp_path).faults == ()
    mutant = mutants.make_mutant(0)
    expected = mutants.read_expected(mutant, sorted((tmp_path / "source").iterdir()))
    name, values = next(iter(expected.good_rows.items()))
    wrong = replace(expected, good_rows={**expected.good_rows, name: (*values[:-1], not values[-1])})
    more = replace(expected, good_rows={**expected.good_rows, "r9999 2024-01": values}, rows=expected.rows + 1)
    less = replace(expected, good_rows={key: row for key, row in expected.good_rows.items() if key != name})
    assert [len(list(mutant_runs.judge_rows(tmp_path, one))) for one in (expected, wrong, more, less, None)] == [
        0,
        1,
        2,
        1,
        1,
    ]
