"""The Pareto front of methods: those that no other beats."""

from __future__ import annotations

from collections.abc import Mapping


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
