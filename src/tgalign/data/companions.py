"""Companions: rows whose pictures are shown more often than the data does, for the guide alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from tgalign.data.encode import EncodedRecord
from tgalign.data.spool import Lazy


def with_companions(
    rows: Sequence[EncodedRecord], companions: list[EncodedRecord], share: float
) -> Sequence[EncodedRecord]:
    """Give a share of the rows another one that goes into the same batch, always the same.

    So the same records are learnt at the same step, with companions or without.

    Args:
        rows: The rows of a stage.
        companions: What to put beside them; none: the rows stay as they are.
        share: Share of the rows that get one.
    """
    if not companions:
        return rows

    def paired(number: int) -> EncodedRecord:
        bits = hashlib.sha256(f"companion-{number}".encode()).digest()
        drawn, which = int.from_bytes(bits[:4]) / 2**32, int.from_bytes(bits[4:12])
        companion = companions[which % len(companions)] if drawn < share else None
        return replace(rows[number], companion=companion)

    return Lazy(len(rows), paired)
