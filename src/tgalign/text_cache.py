"""Keep the states of captions and retrieved texts, where the model they come from does not move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord, Span
from tgalign.task import AlignmentTask

# Shape legend: N texts, L layers, D channels.


class TextCache:
    """States of texts; called with texts, it gives their states (N, L, D) in float32.

    Args:
        rows: The rows of every stage, whose captions and retrieved texts and whose companions' are
            kept: always the same ones in the same batches, so that a resumed run computes with the
            numbers of a straight one.
    """

    def __init__(self, rows: Sequence[Sequence[EncodedRecord]]) -> None:
        self._rows = rows
        self._index: dict[tuple[tuple[int, ...], int, int], int] = {}
        self._layers: list[int] = []
        self._states_NLD = torch.empty(0)

    def clear(self) -> None:
        """Forget the states, as the model they came from has changed."""
        self._layers = []

    def fill(self, task: AlignmentTask, collator: Collator, *, batch_size: int = 256) -> None:
        """Compute the states of all texts, unless those of the task's layers are there.

        Args:
            task: Gives the states (``AlignmentTask.text_states``); its reference must not move.
            collator: Makes batches of texts.
            batch_size: Texts per forward pass, of similar length.
        """
        if task.layers == self._layers:
            return
        distinct = {_key(span): span for rows in self._rows for span in _spans(rows)}
        if not distinct:
            return
        spans = sorted(distinct.values(), key=lambda span: len(span.input_ids))
        parts = []
        device = task.center_LD.device
        for start in range(0, len(spans), batch_size):
            texts = collator.texts(spans[start : start + batch_size])
            ids, mask, span = (
                texts[f"text_{name}"].to(device) for name in ("input_ids", "attention_mask", "span")
            )
            parts.append(task.text_states(ids, mask, span).transpose(0, 1).cpu())
        self._states_NLD, self._layers = torch.cat(parts), task.layers
        self._index = {_key(span): number for number, span in enumerate(spans)}

    def __call__(self, texts: list[Span]) -> Tensor:
        """The states of texts, once they are there."""
        return self._states_NLD[[self._index[_key(span)] for span in texts]]


def _spans(rows: Sequence[EncodedRecord]) -> Iterator[Span]:
    for row in rows:
        for it in (row, row.companion):
            if it is not None:
                yield from (span for span in (it.caption, it.retrieved) if span is not None)


def _key(span: Span) -> tuple[tuple[int, ...], int, int]:
    return tuple(span.input_ids), span.start, span.end
