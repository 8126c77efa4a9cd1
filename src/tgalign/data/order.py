"""The order in which a stage sees its rows: drawn once, for the whole stage."""

from __future__ import annotations

import random
from collections.abc import Sequence

CHUNK = 20
"""Optimizer steps among whose rows those of similar length are put together."""


def row_order(lengths: Sequence[int], *, steps: int, rows_per_step: int, seed: int) -> list[int]:
    """Draw the rows of every optimizer step, so that little of a batch is padding.

    Every row comes once in a pass over the data, in random order but for this: of each ``CHUNK``
    steps' rows, similar lengths share a step, and these steps are shuffled again.

    Args:
        lengths: Tokens of every row; at least one row.
        steps: Optimizer steps of the stage.
        rows_per_step: Rows of one step.
        seed: Seed of the order.

    Returns:
        ``steps * rows_per_step`` row numbers; a run that goes on skips the first of them.
    """
    rng = random.Random(f"row-order-{seed}")
    order: list[int] = []
    left: list[int] = []  # rows of a pass that fill no step go before the next pass
    while len(order) < steps * rows_per_step:
        drawn = left + rng.sample(range(len(lengths)), len(lengths))
        whole = len(drawn) - len(drawn) % rows_per_step
        drawn, left = drawn[:whole], drawn[whole:]
        for start in range(0, whole, CHUNK * rows_per_step):
            chunk = drawn[start : start + CHUNK * rows_per_step]
            chunk.sort(key=lambda row: lengths[row])
            parts = [chunk[i : i + rows_per_step] for i in range(0, len(chunk), rows_per_step)]
            rng.shuffle(parts)
            order += [row for part in parts for row in rng.sample(part, len(part))]
    return order[: steps * rows_per_step]
