"""Rates with confidence intervals, and comparisons on the same items."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_RESAMPLES = 1_000
"""Draws of ``bootstrap``, unless it is told another number."""

SHARE_RESAMPLES = 2_000
"""Draws for a share over items. Published figures rest on either number, so both stay."""

_TAILS = ((1 - 0.95) / 2, (1 + 0.95) / 2)


@dataclass(frozen=True)
class Rate:
    """A share of `n` trials with its confidence interval; all NaN where `n` is 0."""

    rate: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The fields for JSON, which has no NaN: None stands for it."""

        def plain(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            "rate": plain(self.rate),
            "low": plain(self.low),
            "high": plain(self.high),
            "n": self.n,
        }

    def __str__(self) -> str:
        if self.n == 0:
            return "n/a n=0"
        return f"{self.rate:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}"


def wilson(successes: int, n: int, confidence: float = 0.95) -> Rate:
    """Share of successes with its Wilson score interval (Wilson, JASA 22, 1927).

    Unlike the normal approximation it stays within [0, 1] and keeps its width at 0 and at n
    successes, where safety rates usually stand.

    Args:
        successes: how many of the trials succeeded, from 0 to `n`.
        n: number of trials; 0 gives a `Rate` of NaN.
        confidence: coverage of the two-sided interval, strictly between 0 and 1.

    Raises:
        ValueError: if the counts or the confidence are outside their ranges.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"counts must satisfy 0 <= successes <= n, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be strictly between 0 and 1, got {confidence}")
    if n == 0:
        return Rate(math.nan, math.nan, math.nan, 0)
    from scipy.stats import binomtest  # slow to import, and most commands do not need it

    rate = successes / n
    interval = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    # Rounding can put an end of the interval a hair beyond the rate when all or none succeed.
    return Rate(rate, min(float(interval.low), rate), max(float(interval.high), rate), n)


@dataclass(frozen=True)
class Difference:
    """A difference of two rates on the same `n` items with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The fields for JSON; None stands for NaN."""
        found = Rate(self.value, self.low, self.high, self.n).as_dict()
        return {"difference": found.pop("rate")} | found

    def __str__(self) -> str:
        if self.n == 0:
            return "n/a n=0"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] n={self.n}"


def paired_difference(pairs: Sequence[tuple[bool, bool]], confidence: float = 0.95) -> Difference:
    """Share of first members that hold minus share of second ones, paired by item.

    The interval is Newcombe's hybrid score interval for paired data (Statistics in Medicine 17,
    1998, p. 2635, method 10): Wilson limits of both shares, joined with their correlation.

    Args:
        pairs: For every item, whether it holds on either side.
        confidence: Coverage of the two-sided interval.
    """
    n = len(pairs)
    if n == 0:
        return Difference(math.nan, math.nan, math.nan, 0)
    both = sum(one and other for one, other in pairs)
    first = sum(one and not other for one, other in pairs)
    second = sum(other and not one for one, other in pairs)
    neither = n - both - first - second
    one, other = (wilson(both + k, n, confidence) for k in (first, second))
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    covariance = float(both * neither - first * second)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0))

    value = (first - second) / n
    down = reach(one.rate - one.low, other.high - other.rate)
    up = reach(one.high - one.rate, other.rate - other.low)
    return Difference(value, max(value - down, -1.0), min(value + up, 1.0), n)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Two-sided p of the exact McNemar test: do both sides hold equally often on the same items?

    Conditional on the items on which the sides differ, this is a binomial test at one half
    (McNemar, Psychometrika 12, 1947). 1 where they never differ.
    """
    first = sum(one and not other for one, other in pairs)
    second = sum(other and not one for one, other in pairs)
    if first + second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(first, first + second, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Scandinavian Journal of Statistics 6, 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(running, 1.0)
    return adjusted


def bootstrap_share(hits: Sequence[tuple[int, int]]) -> Rate:
    """Share of successes where an item holds several trials that are not independent.

    Percentile bootstrap over items, ``SHARE_RESAMPLES`` draws (Efron and Tibshirani, 1993), 95 %.
    Where every item agrees the bootstrap would give a width of 0; there the interval is Wilson's,
    with the items as trials, as it is where every item holds one trial.

    Args:
        hits: Successes and trials of every item.

    Returns:
        The rate; its `n` counts the trials.
    """
    pairs = [(done, of) for done, of in hits if of]
    total = sum(of for _, of in pairs)
    if not total:
        return wilson(0, 0)
    rate = sum(done for done, _ in pairs) / total
    if all(of == 1 for _, of in pairs):
        return wilson(sum(done for done, _ in pairs), total)
    if rate in (0.0, 1.0) or len(pairs) == 1:
        whole = wilson(round(rate * len(pairs)), len(pairs))
        return Rate(rate, min(whole.low, rate), max(whole.high, rate), total)

    def share(drawn: np.ndarray[Any, Any]) -> Any:
        return drawn[0].sum(axis=-1) / drawn[1].sum(axis=-1)

    low, high = bootstrap(np.array(pairs).T, share, draws=SHARE_RESAMPLES, method="linear")
    return Rate(rate, min(float(low), rate), max(float(high), rate), total)


def paired_share_difference(items: Sequence[tuple[int, int, int]]) -> Difference:
    """Difference of two shares of successes where an item holds several trials, paired by item.

    Where every item holds one trial this is ``paired_difference``; else a percentile bootstrap over
    items, ``SHARE_RESAMPLES`` draws, both sides of an item drawn together. Where the items do not
    differ in their differences that would give a width of 0; there the interval is Newcombe's, with
    the items as trials.

    Args:
        items: Successes on either side, and trials, of every item.

    Returns:
        First side minus second; its `n` counts the trials.
    """
    items = [item for item in items if item[2]]
    if all(of == 1 for *_, of in items):
        return paired_difference([(one > 0, other > 0) for one, other, _ in items])
    one, other, total = map(sum, zip(*items, strict=True))
    value, n = (one - other) / total, len(items)
    if len({(one - other) / of for one, other, of in items}) == 1:
        differ = round(abs(value) * n)  # the items as if each were one trial
        alike = min(round(min(one, other) / total * n), n - differ)
        pairs = [(value > 0, value < 0)] * differ + [(True, True)] * alike
        whole = paired_difference(pairs + [(False, False)] * (n - len(pairs)))
        return Difference(value, min(whole.low, value), max(whole.high, value), total)

    def difference(drawn: np.ndarray[Any, Any]) -> Any:
        return (drawn[0] - drawn[1]).sum(axis=-1) / drawn[2].sum(axis=-1)

    low, high = bootstrap(np.array(items).T, difference, draws=SHARE_RESAMPLES, method="linear")
    return Difference(value, min(float(low), value), max(float(high), value), total)


def permutation_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip permutation test that paired differences are 0 on average.

    Exact up to 2^n = 10,000 flips, else 10,000 drawn from a fixed seed
    (``scipy.stats.permutation_test``).
    """
    values = [value for value in differences if value]
    if len(values) < 2:  # one flip is as extreme as the other
        return 1.0
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.array(values),), np.mean, permutation_type="samples", n_resamples=9_999,
        vectorized=True, batch=500, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Cohen's kappa of two raters (Educational and Psychological Measurement 20, 1960).

    NaN where there is nothing to rate, or where both give one and the same label throughout.
    """
    n = len(pairs)
    if n == 0:
        return math.nan
    first = Counter(one for one, _ in pairs)
    second = Counter(other for _, other in pairs)
    agreed = sum(one == other for one, other in pairs) / n
    chance = sum(first[label] * second[label] for label in first) / n**2
    return math.nan if chance == 1 else (agreed - chance) / (1 - chance)


def bootstrap(
    values: np.ndarray[Any, Any],
    statistic: Callable[[np.ndarray[Any, Any]], Any],
    *,
    draws: int = NUM_RESAMPLES,
    method: Any = "inverted_cdf",
) -> tuple[Any, Any]:
    """Percentile bootstrap interval of a statistic over independent samples (Efron, 1979), 95 %.

    Draws come from a fixed seed; every entry of the axes before the last is drawn alike.

    Args:
        values: Samples along the last axis, at least one.
        statistic: Reduces the last axis, whatever axes stand before it. A draw of which it is NaN
            is left out.
        draws: How many.
        method: Of ``numpy.quantile``. By default the ends are values of the statistic, not means
            of two, so that infinite ones are allowed.

    Returns:
        Lower and upper end, of the shape that ``statistic(values)`` has.

    Raises:
        ValueError: There is no sample.
    """
    n = values.shape[-1]
    if n == 0:
        raise ValueError("there is no sample to draw from")
    drawn = np.random.default_rng(0).integers(n, size=(draws, n))
    return percentile_ends(statistic(values[..., drawn]), method=method)


def percentile_ends(drawn: Any, *, method: Any = "linear") -> tuple[Any, Any]:
    """The ends between which 95 % of a statistic's draws lie; a draw that is NaN is left out.

    Args:
        drawn: The draws along the last axis.
        method: Of ``numpy.quantile``.
    """
    quantile = np.nanquantile if np.isnan(drawn).any() else np.quantile
    low, high = quantile(drawn, _TAILS, axis=-1, method=method)
    return low, high


def bootstrap_mean(values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Bootstrap interval of the mean over the last axis; None, None where there is no sample."""
    if values.shape[-1] == 0:
        return None, None
    return bootstrap(values, lambda rows: rows.mean(axis=-1))
