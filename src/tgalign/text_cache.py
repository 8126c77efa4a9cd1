"""Keep the states of captions and retrieved texts, where the model they come from does not move."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tgalign.data.collate import Collator
from tgalign.data.encode import EncodedRecord, Span
from tgalign.task import AlignmentTask

# Shape legend: N texts, L layers, D channels.


class TextCache:
    """States of texts; called with texts, it gives their states (N, L, D) in float32."""

    def __init__(self) -> None:
        self._index: dict[tuple[tuple[int, ...], int, int], int] = {}
        self._layers: list[int] = []
        self._states_NLD = torch.empty(0)

    def add(
        self,
        task: AlignmentTask,
        rows: Iterable[EncodedRecord],
        collator: Collator,
        *,
        batch_size: int = 256,
    ) -> None:
        """Compute the states of all texts of rows and of their companions that are not kept yet.

        Args:
            task: Gives the states (``AlignmentTask.text_states``); its reference must not move.
            rows: The rows.
            collator: Makes batches of texts.
            batch_size: Texts per forward pass, of similar length.
        """
        if task.layers != self._layers:
            self._index, self._layers = {}, task.layers
        every = [it for row in rows for it in (row, row.companion) if it is not None]
        spans = [span for row in every for span in (row.caption, row.retrieved)]
        new = {_key(span): span for span in spans if span is not None}
        ordered = sorted(
            (span for key, span in new.items() if key not in self._index),
            key=lambda span: len(span.input_ids),
        )
        parts = [self._states_NLD] if self._index else []
        device = task.center_LD.device
        for start in range(0, len(ordered), batch_size):
            texts = collator.texts(ordered[start : start + batch_size])
            ids, mask, span = (
                texts[f"text_{name}"].to(device) for name in ("input_ids", "attention_mask", "span")
            )
            parts.append(task.text_states(ids, mask, span).transpose(0, 1).cpu())
        if ordered:
            self._states_NLD = torch.cat(parts)
            self._index |= {_key(span): len(self._index) + n for n, span in enumerate(ordered)}

    def __call__(self, texts: list[Span]) -> Tensor:
        """The states of texts that were added."""
        return self._states_NLD[[self._index[_key(span)] for span in texts]]


def _key(span: Span) -> tuple[tuple[int, ...], int, int]:
    return tuple(span.input_ids), span.start, span.end
