"""Rates with confidence intervals."""

import math
from dataclasses import dataclass


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
