"""Rates of several seeds as one, and whether the seeds agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tgalign.evaluate.statistics import Rate, wilson

Count = tuple[int, int]
"""Hits and trials of one seed."""

LEVEL = 0.01
"""A p-value below this marks a rate whose seeds differ."""

MARK = "†"
NOTE = (
    f"{MARK} The seeds differ (chi-square over seeds, p < {LEVEL}): the interval is over items and "
    "says nothing of another seed."
)
"""Stands under a table with a mark."""


def pool(counts: Iterable[Count]) -> Rate:
    """The rate of all seeds together, with Wilson's interval over items."""
    pairs = list(counts)
    return wilson(sum(hits for hits, _ in pairs), sum(n for _, n in pairs))


def seeds_differ(counts: Iterable[Count]) -> bool:
    """Whether the rates of the seeds differ by more than chance (chi-square, p < ``LEVEL``).

    Trials are taken as independent: a rate of several things in a picture is marked rather too
    often than too seldom.
    """
    pairs = [(hits, n - hits) for hits, n in counts if n]
    hits, misses = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
    if len(pairs) < 2 or not hits or not misses:
        return False
    from scipy.stats import chi2_contingency

    return float(chi2_contingency(pairs).pvalue) < LEVEL


def counts_of(rates: Sequence[Mapping[str, Any]], *, per_item: int = 1) -> list[Count]:
    """Hits and trials of rates as JSON has them; a rate that was not measured has no trials.

    Args:
        rates: Of every seed.
        per_item: Trials that an item holds, which stand or fall together: they count as one.
    """
    sizes = [rate["n"] // per_item for rate in rates]
    return [(round((rate["rate"] or 0) * n), n) for rate, n in zip(rates, sizes, strict=True)]


def marked(shown: str, counts: Iterable[Count]) -> str:
    """A rate as text, with a ``MARK`` after its interval where the seeds differ."""
    return shown.replace("]", f"]{MARK}", 1) if seeds_differ(counts) else shown


def noted(text: str) -> str:
    """A text in Markdown, with the ``NOTE`` if a rate in it is marked."""
    return f"{text}\n{NOTE}\n" if f"]{MARK}" in text else text
