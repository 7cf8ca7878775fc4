"""tasks.serving.traffic: each row has one answer; a customer stays with one arm, whatever process asks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import params
from tasks.params import Challenger, Params
from tasks.serving import traffic
from tasks.serving.versions import Champion
from tasks.training.model import Feature, Model, Spec
from tests.conftest import raw_params

ROOT = Path(__file__).parents[3]
P = params.validate(raw_params("binary", 60))
ROWS = [{"number": i, "store": f"store {i % 7}", "email": f"person {i % 50}"} for i in range(400)]


def settings(**changes: Any) -> Params:
    serving = P.serving.model_copy(update={"challenger": Challenger(**changes)})
    return P.model_copy(update={"serving": serving})


def version(number: int, *features: str) -> Champion:
    spec = Spec("binary", tuple(Feature(name, "number") for name in features), {})
    return Champion(number, P, "", Model(None, spec), {})


ONE, TWO = version(1, "jam"), version(2, "jam")


def told(parts: list[traffic.Part]) -> list[tuple[int, int, str, bool]]:
    return [(part.version.number, len(part.places), part.arm, not part.is_shadow) for part in parts]


@pytest.mark.parametrize(
    ("challenger", "mode"), [(None, "share"), (None, "shadow"), (TWO, "none"), (ONE, "share"), (ONE, "shadow")]
)
def test_without_a_challenger_the_champion_answers_all(challenger: Champion | None, mode: str) -> None:
    assert told(traffic.split(settings(mode=mode), ONE, challenger, ROWS)) == [(1, 400, "champion", True)]


def test_a_shadow_scores_every_row_and_answers_none() -> None:
    found = traffic.split(settings(mode="shadow"), ONE, TWO, ROWS)
    assert told(found) == [(1, 400, "champion", True), (2, 400, "shadow", False)]


@given(share=st.floats(0.01, 1), count=st.integers(0, 60), mode=st.sampled_from(["none", "shadow", "share"]))
def test_each_row_is_returned_once(share: float, count: int, mode: str) -> None:
    found = traffic.split(settings(mode=mode, share=share), ONE, TWO, ROWS[:count])
    assert sorted(place for part in found if not part.is_shadow for place in part.places) == list(range(count))


def test_a_share_of_the_rows_is_answered_by_the_challenger() -> None:
    mine, theirs = traffic.split(settings(mode="share", share=0.25), ONE, TWO, ROWS)
    assert (mine.arm, theirs.arm, theirs.version, not theirs.is_shadow) == ("champion", "challenger", TWO, True)
    assert 70 < len(theirs.places) < 130
    assert told(traffic.split(settings(mode="share", share=1), ONE, TWO, ROWS)) == [(2, 400, "challenger", True)]


def test_the_share_is_kept_and_no_text_is_likelier_than_another() -> None:
    texts = [f"customer {i}" for i in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        taken = traffic.takes(texts, share)
        error = (share * (1 - share) / len(texts)) ** 0.5
        assert abs(sum(taken) / len(texts) - share) < 4 * error
        first, second = sum(taken[:10_000]), sum(taken[10_000:])
        assert abs(first - second) < 4 * error * len(texts)


def test_a_larger_share_keeps_whom_a_smaller_one_had_and_another_challenger_meets_others() -> None:
    texts = [f"customer {i}" for i in range(2000)]
    small, large, other = traffic.takes(texts, 0.1), traffic.takes(texts, 0.3), traffic.takes(texts, 0.1, by=3)
    assert all(large[i] for i, taken in enumerate(small) if taken)
    assert sum(a and b for a, b in zip(small, other, strict=True)) < 60  # 20 by chance, of 200


def test_a_customer_stays_with_one_arm_over_requests() -> None:
    p = settings(mode="share", share=0.4, sticky=["email"])
    theirs = {ROWS[i]["email"] for part in traffic.split(p, ONE, TWO, ROWS) for i in part.places if part.version is TWO}
    for row in ROWS[:60]:
        (part,) = traffic.split(p, ONE, TWO, [row])
        assert (part.version is TWO) == (row["email"] in theirs)
    assert 8 < len(theirs) < 32


def test_another_process_sends_them_the_same_way() -> None:
    code = "from tasks.serving import traffic; print(traffic.takes([str(i) for i in range(300)], 0.3, by=2))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said.strip() == str(traffic.takes([str(i) for i in range(300)], 0.3, by=2))


def test_what_is_sticky_is_the_contracts_key_unless_somebody_says_otherwise() -> None:
    assert traffic.sticky_of(P, ROWS[3]) == "number=3"
    by_store = settings(sticky=["store", "email"])
    assert traffic.sticky_of(by_store, ROWS[3]) == "store=store 3\x1femail=person 3"
    assert traffic.sticky_of(P, {"jam": 1.5, "amount": 2.0}) == "amount=2.0\x1fjam=1.5"  # ready features have no key


def test_sticky_columns_that_a_row_does_not_have_are_refused() -> None:
    raw = raw_params("binary", 60) | {"serving": {"challenger": {"sticky": ["emial"]}}}
    with pytest.raises(ValueError, match=r"sticky must name spine columns, but \['emial'\] are none.*`email`"):
        params.validate(raw)
    raw["serving"]["challenger"] = {"mode": False}
    with pytest.raises(ValueError, match="'none', 'shadow' or 'share', but got False"):
        params.validate(raw)


def test_a_challenger_with_features_of_its_own_is_left_out_where_features_are_sent() -> None:
    assert traffic.fits(version(1, "jam", "age"), TWO) is TWO
    assert traffic.fits(ONE, version(2, "jam", "age")) is None
    assert traffic.fits(ONE, None) is None
