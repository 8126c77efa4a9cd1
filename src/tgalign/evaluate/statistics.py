"""Rates with confidence intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_RESAMPLES = 1_000
"""Of the bootstrap."""


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


def bootstrap(
    values: np.ndarray[Any, Any],
    statistic: Callable[[np.ndarray[Any, Any]], Any],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Percentile bootstrap interval of a statistic over independent samples (Efron, 1979).

    Infinite values are allowed: the ends are values of the statistic, not means of two.

    Args:
        values: Samples along the last axis, at least one.
        statistic: Reduces the last axis, whatever axes stand before it.
        confidence: Coverage of the two-sided interval.
        seed: Of the resampling; every entry of the axes before the last is resampled alike.

    Returns:
        Lower and upper end, of the shape that ``statistic(values)`` has.

    Raises:
        ValueError: There is no sample.
    """
    n = values.shape[-1]
    if n == 0:
        raise ValueError("there is no sample to draw from")
    drawn = np.random.default_rng(seed).integers(n, size=(NUM_RESAMPLES, n))
    found = statistic(values[..., drawn])
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail], axis=-1, method="inverted_cdf")
    return low, high


def bootstrap_mean(values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Bootstrap interval of the mean over the last axis; None, None where there is no sample."""
    if values.shape[-1] == 0:
        return None, None
    return bootstrap(values, lambda rows: rows.mean(axis=-1))
