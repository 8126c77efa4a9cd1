"""Paired tests between methods on the same items, corrected for their number; the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Two methods on the same items.

    Attributes:
        gained: Items on which only the new one succeeds.
        lost: Items on which only the old one does.
        n: All items.
        p: Two-sided exact p-value of McNemar's test; 1 where they never differ.
    """

    gained: int
    lost: int
    n: int
    p: float

    @property
    def difference(self) -> float:
        """Share of successes of the new one less that of the old one."""
        return (self.gained - self.lost) / self.n


def mcnemar(new: Sequence[bool], old: Sequence[bool]) -> Paired:
    """McNemar's exact test (Psychometrika 12, 1947): are the discordant items evenly split?

    Args:
        new: Success by item.
        old: The same items in the same order.

    Raises:
        ValueError: There is no item, or not the same number of them.
    """
    from scipy.stats import binomtest

    if not new or len(new) != len(old):
        raise ValueError(f"expected the same items twice, got {len(new)} and {len(old)}")
    gained = sum(a and not b for a, b in zip(new, old, strict=True))
    lost = sum(b and not a for a, b in zip(new, old, strict=True))
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Paired(gained, lost, len(new), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Stat. 6, 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def pareto(points: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """The names that no other point beats.

    Args:
        points: By name DSR, over-refusal and naming. A point is beaten by one that is no worse in
            all three and better in one: more refused, fewer harmless refused, more named.
    """

    def beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
        gains = (one[0] - other[0], other[1] - one[1], one[2] - other[2])
        return min(gains) >= 0 and max(gains) > 0

    return [
        name
        for name, point in points.items()
        if not any(beats(other, point) for other in points.values())
    ]
