"""Seeds as one rate, and whether they agree."""

import pytest
from scipy.stats import chi2

from tgalign.evaluate.seeds import NOTE, counts_of, marked, noted, pool, seeds_differ
from tgalign.evaluate.statistics import wilson


def test_seeds_are_one_rate_over_all_their_items() -> None:
    assert pool([(3, 10), (5, 20), (0, 0)]) == wilson(8, 30)
    assert pool([]).n == 0


def test_seeds_differ_by_chi_square() -> None:
    """Of 100 each: 40 + x, 40, 40 - x have 2 x^2 / 40 + 2 x^2 / 60 = x^2 / 12."""
    limit = (12 * chi2.isf(0.01, 2)) ** 0.5
    assert 10 < limit < 11
    assert not seeds_differ([(50, 100), (40, 100), (30, 100)])
    assert seeds_differ([(51, 100), (40, 100), (29, 100)])


@pytest.mark.parametrize(
    "counts",
    [[], [(1, 2)], [(0, 9), (0, 99)], [(9, 9), (99, 99)], [(0, 0), (5, 9)], [(0, 0), (0, 0)]],
)
def test_seeds_that_cannot_differ_do_not(counts) -> None:
    assert not seeds_differ(counts)


def test_trials_that_stand_or_fall_together_count_as_one() -> None:
    rates = [{"rate": hits / 200, "n": 200} for hits in (96, 80, 64)]
    assert counts_of(rates) == [(96, 200), (80, 200), (64, 200)]
    assert seeds_differ(counts_of(rates))
    assert counts_of(rates, per_item=2) == [(48, 100), (40, 100), (32, 100)]
    assert not seeds_differ(counts_of(rates, per_item=2))
    assert counts_of([{"rate": None, "n": 0}]) == [(0, 0)]


def test_the_mark_stands_after_the_interval_and_is_explained() -> None:
    shown = marked("0.50 [0.43, 0.57] n=200 (0.04, 0.96)", [(4, 100), (96, 100)])
    assert shown == "0.50 [0.43, 0.57]† n=200 (0.04, 0.96)"
    assert noted(shown) == f"{shown}\n{NOTE}\n"
    same = marked("0.50 [0.43, 0.57]", [(50, 100), (50, 100)])
    assert same == "0.50 [0.43, 0.57]" == noted(same)
    assert marked("n/a", []) == "n/a"
