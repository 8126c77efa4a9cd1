"""McNemar, Holm and the Pareto front against their definitions."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.baselines.significance import holm, mcnemar, pareto

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)
rates = st.integers(0, 4).map(lambda number: number / 4)
points = st.dictionaries(
    st.text(min_size=1, max_size=3), st.tuples(rates, rates, rates), min_size=1
)


def exact(gained: int, lost: int) -> float:
    """Two-sided sign test on the discordant items, summed term by term."""
    n, low = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(low + 1)) / 2**n
    return min(1.0, 2 * tail)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(deadline=None)  # the first call imports scipy
def test_mcnemar_reads_the_discordant_items_alone(pairs):
    new, old = [a for a, _ in pairs], [b for _, b in pairs]
    found = mcnemar(new, old)
    assert found.gained == sum(a and not b for a, b in pairs)
    assert found.lost == sum(b and not a for a, b in pairs)
    assert found.p == pytest.approx(exact(found.gained, found.lost))
    assert found.difference == pytest.approx((sum(new) - sum(old)) / len(pairs))
    turned = mcnemar(old, new)
    assert (turned.p, turned.gained, turned.lost) == (found.p, found.lost, found.gained)


def test_mcnemar_wants_the_same_items():
    for new, old in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="expected the same items twice"):
            mcnemar(new, old)


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


@given(p_values, st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(values, rng):
    found = holm(values)
    for value, adjusted in zip(values, found, strict=True):
        assert value <= adjusted <= min(1.0, len(values) * value) + 1e-12
    ranked = [adjusted for _, adjusted in sorted(zip(values, found, strict=True))]
    assert ranked == sorted(ranked)
    order = rng.sample(range(len(values)), len(values))
    again = holm([values[number] for number in order])
    assert [again[order.index(number)] for number in range(len(values))] == found


@given(points)
@settings(max_examples=50)
def test_the_front_is_beaten_by_nobody_and_beats_all_the_others(given_points):
    front = pareto(given_points)
    assert front

    def no_worse(a, b):
        return a[0] >= b[0] and a[1] <= b[1] and a[2] >= b[2]

    for name, point in given_points.items():
        beaten = any(no_worse(it, point) and it != point for it in given_points.values())
        assert (name in front) == (not beaten)
        if beaten:
            assert any(no_worse(given_points[it], point) for it in front)


def test_two_equal_methods_are_both_on_the_front():
    same = (0.5, 0.1, 0.9)
    assert pareto({"a": same, "b": same, "c": (0.5, 0.2, 0.9)}) == ["a", "b"]
