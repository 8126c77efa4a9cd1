"""Statistics against values from a formula or from slow draws: ends, defaults, a single item."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from tgalign.evaluate.statistics import (
    Difference,
    Rate,
    bootstrap,
    bootstrap_mean,
    bootstrap_share,
    cohen_kappa,
    mcnemar,
    paired_difference,
    paired_share_difference,
    wilson,
)

Pairs = list[tuple[bool, bool]]
FEW = [(0, 7), (3, 11), (2, 2), (9, 13), (5, 5), (1, 17), (4, 9)]
TWO_SIDES = [(3, 0, 7), (3, 5, 11), (2, 2, 2), (9, 1, 13), (0, 5, 5), (8, 1, 17), (4, 9, 9)]


def pairs_of(both: int, first: int, second: int, neither: int) -> Pairs:
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    counts = (both, first, second, neither)
    return [pair for pair, n in zip(kinds, counts, strict=True) for _ in range(n)]


def drawn_shares(table: np.ndarray, weights: list[int]) -> list[float]:
    """The weighted sum of an item's columns over its trials, in 2,000 draws from seed 0."""
    draws = np.random.default_rng(0).integers(0, len(table), (2000, len(table)))
    shares = []
    for draw in draws:
        done = sum(sum(w * int(x) for w, x in zip(weights, table[k], strict=False)) for k in draw)
        shares.append(done / sum(int(table[k][-1]) for k in draw))
    return sorted(shares)


def between(ordered: list[float], share: float) -> float:
    """The quantile that lies between two of the ordered values, as numpy's default has it."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 10), (10, 10)])
def test_wilson_by_its_formula(successes: int, n: int, confidence: float) -> None:
    z = norm.ppf((1 + confidence) / 2)
    p = successes / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = wilson(successes, n, confidence)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert (found.rate, found.n) == (p, n)


def test_one_item_is_written_as_a_number() -> None:
    assert str(Rate(1.0, 0.2065, 1.0, 1)) == "1.00 [0.21, 1.00] n=1"
    assert str(Difference(-1.0, -1.0, 0.5, 1)) == "-1.00 [-1.00, +0.50] n=1"
    assert str(Difference(0.25, -0.125, 0.5, 40)) == "+0.25 [-0.12, +0.50] n=40"
    written = {"difference": 0.25, "low": -0.125, "high": 0.5, "n": 40}
    assert Difference(0.25, -0.125, 0.5, 40).as_dict() == written


def test_one_pair_has_an_interval() -> None:
    found = paired_difference([(True, False)])
    one, other = wilson(1, 1), wilson(0, 1)
    assert found == Difference(1.0, 1 - math.hypot(1 - one.low, other.high), 1.0, 1)
    assert mcnemar([(True, False)]) == 1.0


def test_kappa_of_one_pair_and_of_three_labels() -> None:
    assert cohen_kappa([("a", "b")]) == 0
    # 6 of 10 agree; by chance (4 * 3 + 3 * 4 + 3 * 3) / 100 = 0.33.
    pairs = list(zip("aaaabbbccc", "aabbbbcacc", strict=True))
    assert cohen_kappa(pairs) == pytest.approx((0.6 - 0.33) / (1 - 0.33))


def test_a_share_over_items_by_slow_draws() -> None:
    shares = drawn_shares(np.array(FEW), [1])
    low, high = between(shares, 0.025), between(shares, 0.975)
    found = bootstrap_share([(0, 0), *FEW])
    assert found == Rate(24 / 64, pytest.approx(low), pytest.approx(high), 64)


def test_a_difference_over_items_by_slow_draws() -> None:
    shares = drawn_shares(np.array(TWO_SIDES), [1, -1])
    low, high = between(shares, 0.025), between(shares, 0.975)
    found = paired_share_difference([(0, 0, 0), *TWO_SIDES])
    assert found == Difference(6 / 64, pytest.approx(low), pytest.approx(high), 64)


@pytest.mark.parametrize(
    ("items", "pairs", "value"),
    [
        # Every item differs by a half; of 16 items 8 stand for that, 20 / 64 of 16 hold twice.
        ([(3, 1, 4)] * 12 + [(4, 2, 4)] * 4, pairs_of(5, 8, 0, 3), 0.5),
        ([(1, 3, 4)] * 12 + [(2, 4, 4)] * 4, pairs_of(5, 0, 8, 3), -0.5),
        # Both numbers of items are rounded up: there must not be more of them than there are.
        ([(4, 2, 4)] * 3, pairs_of(1, 2, 0, 0), 0.5),
        ([(1, 1, 4)] * 8, pairs_of(2, 0, 0, 6), 0.0),
    ],
)
def test_items_of_one_difference_are_as_many_pairs(
    items: list[tuple[int, int, int]], pairs: Pairs, value: float
) -> None:
    whole = paired_difference(pairs)
    ends = min(whole.low, value), max(whole.high, value)
    expected = Difference(value, *ends, sum(of for *_, of in items))
    assert paired_share_difference(items) == expected


def test_the_bootstrap_of_several_rows_is_that_of_each() -> None:
    table = np.random.default_rng(4).normal(size=(2, 9))
    low, high = bootstrap_mean(table)
    assert low.shape == high.shape == (2,)
    for row, ends in zip(table, zip(low, high, strict=True), strict=True):
        draws = np.random.default_rng(0).integers(9, size=(1000, 9))
        means = sorted(float(row[draw].mean()) for draw in draws)
        # The 26th and the 975th: in floating point (1 - 0.95) / 2 is a hair above 0.025.
        assert ends == pytest.approx((means[25], means[974]))


def test_the_bootstrap_of_one_sample_is_that_sample() -> None:
    assert bootstrap_mean(np.array([2.5])) == (2.5, 2.5)
    assert bootstrap(np.array([2.5]), lambda rows: rows.max(axis=-1)) == (2.5, 2.5)


def test_the_bootstrap_without_a_sample_says_so() -> None:
    with pytest.raises(ValueError, match=r"^there is no sample to draw from$"):
        bootstrap(np.array([]), lambda rows: rows.mean(axis=-1))
