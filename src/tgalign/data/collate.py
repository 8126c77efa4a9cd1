"""Batch encoded records: right-padded conversations, captions and retrieved texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tgalign.data.encode import IGNORE_INDEX, EncodedRecord, Span

# Shape legend: B rows, T tokens.


class Collator:
    """Make the batch that ``AlignmentTask.forward`` takes.

    Args:
        pad_token_id: Fills rows to one length.
        load_pixels: Maps picture paths to what the vision tower takes, stacked along dimension 0.
        load_states: Maps texts to their mean states, stacked along dimension 0, where these are
            known already (``tgalign.text_cache``).
        pack: Whether texts share rows; if not, each has a row and many are mostly padding. The
            language model must tell them apart (``tgalign.execution.packs``).
    """

    def __init__(
        self,
        pad_token_id: int,
        load_pixels: Callable[[list[Path]], Tensor],
        load_states: Callable[[list[Span]], Tensor] | None = None,
        *,
        pack: bool = False,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.load_pixels = load_pixels
        self.load_states = load_states
        self.pack = pack

    def __call__(self, rows: list[EncodedRecord]) -> dict[str, Tensor]:
        """Batch rows, their companions last.

        Returns:
            ``input_ids``, ``attention_mask``, ``labels`` (B, T); ``pixel_values`` if any row has an
            image; ``caption_mask``, ``retrieved_mask`` (B,); and, if any row has a caption,
            what ``texts`` or ``packed_texts`` gives of the captions of the rows in the one mask,
            then the retrieved texts of those in the other, none of them empty. Where states are
            known, ``text_states`` (texts, L, D) stands in their place.
        """
        rows = rows + [row.companion for row in rows if row.companion is not None]
        ids_BT = self._pad([row.input_ids for row in rows], self.pad_token_id)
        batch = {
            "input_ids": ids_BT,
            "attention_mask": _lengths_mask([len(row.input_ids) for row in rows], ids_BT.shape[1]),
            "labels": self._pad([row.labels for row in rows], IGNORE_INDEX),
            "caption_mask": torch.tensor([row.caption is not None for row in rows]),
            "retrieved_mask": torch.tensor([row.retrieved is not None for row in rows]),
        }
        if any(row.question is not None for row in rows):
            batch["question_mask"] = torch.zeros_like(ids_BT, dtype=torch.bool)
            for number, row in enumerate(rows):
                batch["question_mask"][number, slice(*(row.question or (0, 0)))] = True
        images = [row.image for row in rows if row.image is not None]
        if images:
            batch["pixel_values"] = self.load_pixels(images)
        if batch["caption_mask"].any():
            every = [row.caption for row in rows] + [row.retrieved for row in rows]
            texts = [text for text in every if text is not None]
            if self.load_states is not None:
                batch["text_states"] = self.load_states(texts)
            else:
                batch |= self.packed_texts(texts) if self.pack else self.texts(texts)
        return batch

    def no_texts(self) -> dict[str, Tensor]:
        """What a batch without any caption needs, to make the passes of one that has some.

        Returns:
            One token of which nothing is averaged; nothing where states are known.
        """
        if self.load_states is not None:
            return {}
        nothing = [Span([self.pad_token_id], 0, 0)]
        return self.packed_texts(nothing) if self.pack else self.texts(nothing)

    def texts(self, texts: list[Span]) -> dict[str, Tensor]:
        """Batch texts alone: ids, attention mask and the span that is averaged."""
        ids_BT = self._pad([text.input_ids for text in texts], self.pad_token_id)
        span_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, text in enumerate(texts):
            span_BT[row, text.start : text.end] = True
        lengths = [len(text.input_ids) for text in texts]
        return {
            "text_input_ids": ids_BT,
            "text_attention_mask": _lengths_mask(lengths, ids_BT.shape[1]),
            "text_span": span_BT,
        }

    def packed_texts(self, texts: list[Span]) -> dict[str, Tensor]:
        """Batch texts alone, several in a row.

        Returns:
            Ids, positions, which begin anew with every text and every token of padding, and the
            number of the text that a token is averaged for, -1 for none.
        """
        longest = max(len(text.input_ids) for text in texts)
        rows: list[list[int]] = []  # numbers of texts
        room: list[int] = []
        for number in sorted(range(len(texts)), key=lambda n: -len(texts[n].input_ids)):
            length = len(texts[number].input_ids)
            row = next((row for row, left in enumerate(room) if left >= length), len(rows))
            if row == len(rows):
                rows.append([])
                room.append(2 * longest)
            rows[row].append(number)
            room[row] -= length
        ids, positions, numbers = [], [], []
        for row_texts in rows:
            spans = [(number, texts[number]) for number in row_texts]
            ids.append([token for _, span in spans for token in span.input_ids])
            positions.append([at for _, span in spans for at in range(len(span.input_ids))])
            numbers.append(
                [
                    number if span.start <= at < span.end else -1
                    for number, span in spans
                    for at in range(len(span.input_ids))
                ]
            )
        return {
            "text_input_ids": self._pad(ids, self.pad_token_id),
            "text_position_ids": self._pad(positions, 0),
            "text_number": self._pad(numbers, -1),
        }

    @staticmethod
    def _pad(rows: list[list[int]], value: int) -> Tensor:
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _lengths_mask(lengths: list[int], longest: int) -> Tensor:
    return (torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]).long()
