import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.evaluate.statistics import Rate, wilson

Z_95 = 1.959963984540054


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_reproduces_published_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    rate = wilson(successes, n)
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)
    assert rate.rate == successes / n
    assert rate.n == n


@settings(deadline=None)
@given(counts())
def test_wilson_solves_the_score_equation(pair: tuple[int, int]) -> None:
    successes, n = pair
    result = wilson(successes, n)
    for end in (result.low, result.high):
        distance = (result.rate - end) ** 2
        assert math.isclose(distance, Z_95**2 * end * (1 - end) / n, rel_tol=1e-6, abs_tol=1e-9)


@settings(deadline=None)
@given(counts(), st.floats(0.01, 0.999))
def test_interval_holds_the_rate(pair: tuple[int, int], confidence: float) -> None:
    result = wilson(*pair, confidence=confidence)
    assert 0 <= result.low <= result.rate <= result.high <= 1


@settings(deadline=None)
@given(counts(), st.integers(2, 50))
def test_fewer_trials_give_a_wider_interval(pair: tuple[int, int], factor: int) -> None:
    successes, n = pair
    small, large = wilson(successes, n), wilson(successes * factor, n * factor)
    assert small.high - small.low > large.high - large.low


@settings(deadline=None)
@given(counts())
def test_failures_mirror_successes(pair: tuple[int, int]) -> None:
    successes, n = pair
    one, other = wilson(successes, n), wilson(n - successes, n)
    assert math.isclose(one.low, 1 - other.high, abs_tol=1e-9)


@settings(deadline=None)
@given(counts())
def test_more_confidence_is_wider(pair: tuple[int, int]) -> None:
    narrow, wide = wilson(*pair, confidence=0.8), wilson(*pair, confidence=0.99)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high
    assert wide.high - wide.low > narrow.high - narrow.low


def test_no_trials_give_nan_and_null() -> None:
    rate = wilson(0, 0)
    assert all(math.isnan(value) for value in (rate.rate, rate.low, rate.high))
    assert rate.as_dict() == {"rate": None, "low": None, "high": None, "n": 0}
    assert str(rate) == "n/a n=0"


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1), (1, 0)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence)


def test_rate_prints_and_serialises() -> None:
    rate = Rate(rate=0.9333, low=0.8821, high=0.9601, n=120)
    assert str(rate) == "0.93 [0.88, 0.96] n=120"
    expected = {"rate": 0.9333, "low": 0.8821, "high": 0.9601, "n": 120}
    assert json.loads(json.dumps(rate.as_dict(), allow_nan=False)) == expected


def test_scipy_waits_until_it_is_needed() -> None:
    code = "import sys, tgalign.evaluate.statistics; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
