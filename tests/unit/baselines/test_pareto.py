"""The Pareto front against its definition."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tgalign.baselines.pareto import pareto

rates = st.integers(0, 4).map(lambda number: number / 4)
points = st.dictionaries(
    st.text(min_size=1, max_size=3), st.tuples(rates, rates, rates), min_size=1
)


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
