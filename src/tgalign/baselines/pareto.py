"""The Pareto front of methods: those that no other beats."""

from __future__ import annotations

from collections.abc import Mapping

Point = tuple[float, float, float]
"""DSR, over-refusal and naming."""


def beats(one: Point, other: Point) -> bool:
    """Whether a point is no worse in all three and better in one.

    Better is more refused, fewer harmless refused, more named.
    """
    gains = (one[0] - other[0], other[1] - one[1], one[2] - other[2])
    return min(gains) >= 0 and max(gains) > 0


def pareto(points: Mapping[str, Point]) -> list[str]:
    """The names that no other point ``beats``."""
    return [
        name
        for name, point in points.items()
        if not any(beats(other, point) for other in points.values())
    ]
