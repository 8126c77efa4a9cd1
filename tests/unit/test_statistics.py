import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.evaluate.statistics import (
    Rate,
    bootstrap,
    bootstrap_mean,
    bootstrap_share,
    cohen_kappa,
    holm,
    mcnemar,
    paired_difference,
    paired_share_difference,
    percentile_ends,
    permutation_p,
    wilson,
)

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


def pairs_of(both: int, first: int, second: int, neither: int) -> list[tuple[bool, bool]]:
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    counts = (both, first, second, neither)
    return [pair for pair, n in zip(kinds, counts, strict=True) for _ in range(n)]


def test_paired_difference_reproduces_newcombe() -> None:
    """Statistics in Medicine 17 (1998), p. 2635, table II, method 10: 36, 12, 2, 0."""
    found = paired_difference(pairs_of(36, 12, 2, 0))
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (0.2, 0.0569, 0.3404)


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Method 10 as the paper writes it: phi is continuity-corrected where it is positive."""
    n = both + first + second + neither
    one, other = wilson(both + first, n), wilson(both + second, n)
    a, b, c, d = both, first, second, neither
    product = (a + b) * (c + d) * (a + c) * (b + d)
    top = a * d - b * c
    phi = 0.0
    if product:
        phi = (max(top - n / 2, 0.0) if top > 0 else top) / math.sqrt(product)
    dl1, du1 = one.rate - one.low, one.high - one.rate
    dl2, du2 = other.rate - other.low, other.high - other.rate
    down = math.sqrt(dl1**2 - 2 * phi * dl1 * du2 + du2**2)
    up = math.sqrt(du1**2 - 2 * phi * du1 * dl2 + dl2**2)
    return (b - c) / n - down, (b - c) / n + up


@pytest.mark.parametrize(
    "counts", [(20, 5, 3, 22), (1, 0, 0, 1), (0, 0, 3, 7), (4, 6, 0, 0), (3, 9, 8, 2), (9, 1, 1, 2)]
)
def test_paired_difference_is_method_10(counts: tuple[int, int, int, int]) -> None:
    found = paired_difference(pairs_of(*counts))
    assert (found.low, found.high) == pytest.approx(newcombe(*counts), abs=1e-12)


def test_less_confidence_is_narrower() -> None:
    pairs = pairs_of(20, 5, 3, 22)
    wide, narrow = paired_difference(pairs), paired_difference(pairs, 0.5)
    assert narrow.high - narrow.low < 0.8 * (wide.high - wide.low)


table_counts = st.tuples(*[st.integers(0, 40)] * 4).filter(any)


@settings(deadline=None)
@given(table_counts)
def test_paired_difference_holds_its_value_and_mirrors(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    one = paired_difference(pairs_of(*counts))
    other = paired_difference(pairs_of(both, second, first, neither))
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert math.isclose(one.low, -other.high, abs_tol=1e-9)
    assert one.n == sum(counts)


def test_paired_difference_covers_what_is_true() -> None:
    """Of 400 samples of correlated pairs with a true difference of 0.2, about 95 % of intervals."""
    import random

    rng = random.Random(5)
    covered = 0
    for _ in range(400):
        pairs = []
        for _ in range(60):
            draw = rng.random()
            pairs.append((draw < 0.6, draw < 0.3 or draw > 0.9))
        found = paired_difference(pairs)
        covered += found.low <= 0.2 <= found.high
    assert 0.92 <= covered / 400 <= 0.99


def test_no_pairs_give_null() -> None:
    found = paired_difference([])
    assert found.as_dict() == {"difference": None, "low": None, "high": None, "n": 0}
    assert str(found) == "n/a n=0"
    assert mcnemar([]) == 1.0
    assert permutation_p([]) == 1.0


def test_mcnemar_is_a_binomial_test_of_the_differing_pairs() -> None:
    assert mcnemar(pairs_of(5, 8, 0, 5)) == pytest.approx(2 / 2**8)
    assert mcnemar(pairs_of(50, 3, 3, 50)) == 1.0
    assert mcnemar(pairs_of(0, 1, 7, 90)) == mcnemar(pairs_of(3, 7, 1, 0))


def test_permutation_p_counts_flips() -> None:
    assert permutation_p([1.0] * 8) == pytest.approx(2 / 2**8)
    assert permutation_p([0.5, -0.5, 0.0]) == 1.0
    assert permutation_p([0.5, 0.0, 0.0]) == 1.0
    assert permutation_p([0.5, 0.5]) == 0.5


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_never_smaller_and_keeps_the_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))
    ranked = [a for _, a in sorted(zip(values, adjusted, strict=True))]
    assert ranked == sorted(ranked)
    assert holm(values) == adjusted


def test_kappa_by_hand() -> None:
    table = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    assert cohen_kappa(table) == pytest.approx(0.4)
    assert cohen_kappa([("a", "a"), ("b", "b")]) == 1.0
    assert math.isnan(cohen_kappa([("a", "a")] * 3))
    assert math.isnan(cohen_kappa([]))


def test_bootstrap_is_wilson_where_items_hold_one_trial() -> None:
    assert bootstrap_share([(1, 1)] * 7 + [(0, 1)] * 3) == wilson(7, 10)
    assert bootstrap_share([(0, 0)]).n == 0


def test_bootstrap_counts_items_and_not_trials() -> None:
    """Two things of one picture that stand or fall together are one observation."""
    together = bootstrap_share([(2, 2)] * 30 + [(0, 2)] * 30)
    apart = wilson(60, 120)
    assert together.rate == apart.rate == 0.5
    assert together.n == 120
    assert together.high - together.low > 1.25 * (apart.high - apart.low)
    assert bootstrap_share([(2, 2)] * 30).low == wilson(30, 30).low


def test_bootstrap_of_items_that_agree_or_of_one_item_is_wilson_over_items() -> None:
    for hits, done, items in (([(2, 2)] * 30, 30, 30), ([(0, 2)] * 30, 0, 30), ([(1, 2)], 0, 1)):
        found, over_items = bootstrap_share(hits), wilson(done, items)
        share = sum(it[0] for it in hits) / sum(it[1] for it in hits)
        ends = min(over_items.low, share), max(over_items.high, share)
        assert found == Rate(share, *ends, sum(it[1] for it in hits))
    two = bootstrap_share([(1, 2), (2, 3)])
    assert (two.low, two.high, two.n) == (0.5, pytest.approx(2 / 3), 5)


def test_bootstrap_share_draws_whole_items_from_a_fixed_seed() -> None:
    hits = [(0, 1), (1, 3), (2, 2), (0, 4), (5, 5), (1, 2), (3, 4)]
    table = np.array(hits)
    rows = np.random.default_rng(0).integers(0, 7, (2000, 7))
    shares = [table[row, 0].sum() / table[row, 1].sum() for row in rows]
    low, high = np.quantile(shares, [0.025, 0.975])
    assert bootstrap_share(hits) == Rate(12 / 21, pytest.approx(low), pytest.approx(high), 21)


def test_permutation_p_of_many_differences_is_drawn_from_a_fixed_seed() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.4, 1.0, 24).tolist()
    p = permutation_p(values)
    assert p == permutation_p(values)
    assert 0.01 < p < 0.2
    draws = round(p * 10_000 / 2)  # scipy counts the data as one draw, and doubles one side
    assert p == pytest.approx(2 * draws / 10_000, abs=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
@settings(max_examples=30, deadline=None)
def test_the_bootstrap_brackets_and_repeats(values):
    rows = np.array(values)
    low, high = bootstrap_mean(rows)
    assert rows.min() - 1e-9 <= low <= high <= rows.max() + 1e-9
    assert (low, high) == bootstrap_mean(rows)
    stacked = bootstrap_mean(np.stack([rows, rows + 1]))
    np.testing.assert_allclose(stacked[0][1] - stacked[0][0], 1, atol=1e-9)


def test_the_bootstrap_covers_a_mean_and_takes_infinity():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        low, high = bootstrap(rng.normal(size=40), lambda rows: rows.mean(-1))
        hits += low <= 0 <= high
    assert 86 <= hits <= 100
    low, high = bootstrap(np.array([1.0, 2.0, math.inf]), lambda rows: rows.max(-1))
    assert (low, high) == (1.0, math.inf) or (low, high) == (2.0, math.inf)
    assert bootstrap_mean(np.array([])) == (None, None)
    with pytest.raises(ValueError, match="no sample"):
        bootstrap(np.array([]), lambda rows: rows.mean(-1))


def test_the_bootstrap_draws_samples_from_a_fixed_seed() -> None:
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
    for options, draws in (({}, 1000), ({"draws": 200}, 200)):
        rows = np.random.default_rng(0).integers(8, size=(draws, 8))
        means = sorted(values[row].mean() for row in rows)
        tail = (1 - 0.95) / 2
        ends = means[math.ceil(tail * draws) - 1], means[math.ceil((1 - tail) * draws) - 1]
        assert bootstrap(values, lambda it: it.mean(axis=-1), **options) == pytest.approx(ends)


def test_a_draw_without_a_value_is_left_out_of_the_bootstrap() -> None:
    drawn = np.array([[0.0, math.nan, 1.0, 2.0], [0.0, 1.0, 2.0, math.nan]])
    low, high = percentile_ends(drawn)
    assert low.tolist() == pytest.approx([0.05, 0.05])
    assert high.tolist() == pytest.approx([1.95, 1.95])


def test_paired_shares_of_single_trials_are_newcombe_s() -> None:
    items = [(1, 0, 1)] * 5 + [(0, 1, 1)] * 2 + [(1, 1, 1)] * 9
    pairs = [(bool(one), bool(other)) for one, other, _ in items]
    assert paired_share_difference(items) == paired_difference(pairs)
    assert paired_share_difference([(0, 0, 0)]).n == 0
    assert paired_share_difference([]).as_dict()["difference"] is None


def test_paired_shares_count_items_and_know_the_pairing() -> None:
    items = [(2, 0, 2)] * 20 + [(0, 0, 2)] * 20 + [(2, 2, 2)] * 20
    found = paired_share_difference(items)
    assert (found.value, found.n) == (pytest.approx(1 / 3), 120)
    normal = Z_95 * math.sqrt((1 / 3) * (2 / 3) / 60)  # of the mean of 60 differences
    assert found.low == pytest.approx(1 / 3 - normal, abs=0.03)
    assert found.high == pytest.approx(1 / 3 + normal, abs=0.03)
    for one in (0, 1, 2):  # no item differs from another in its difference: still no width of 0
        for other in (0, 1, 2):
            same = paired_share_difference([(one, other, 2)] * 30)
            assert same.value == (one - other) / 2
            assert same.low <= same.value <= same.high
            assert same.high - same.low > 0.05


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
@settings(max_examples=30, deadline=None)
def test_paired_shares_hold_their_value_and_mirror(sides: list[tuple[int, int]]) -> None:
    found = paired_share_difference([(one, other, 3) for one, other in sides])
    mirrored = paired_share_difference([(other, one, 3) for one, other in sides])
    if not sides:
        assert found.n == 0
        return
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert mirrored.value == pytest.approx(-found.value)
    assert mirrored.low == pytest.approx(-found.high, abs=0.01)
