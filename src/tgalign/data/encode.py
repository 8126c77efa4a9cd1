"""Turn records into token ids, labels and spans, by the checkpoint's own chat template.

Three texts per record: the conversation with the image, the caption C where the image would stand,
and the retrieved text R likewise. Nothing is ever truncated; a row that is too long is a problem
with its row number.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tgalign.data.records import IMAGE_TOKEN, Problem, Record
from tgalign.data.rendering import ChatTemplate, as_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
RETRIEVED_PROMPT = "Retrieved Text: {text}"
"""How R stands before the image: the released code's wording (``preprocess_llama_2``), whose final
``. `` is left out, as R ends its own sentence."""


@dataclass(frozen=True)
class Span:
    """Token ids and the half-open range of them that is averaged."""

    input_ids: list[int]
    start: int
    end: int


@dataclass(frozen=True)
class EncodedRecord:
    """A record ready for batching.

    Attributes:
        input_ids: The conversation, with one id per image token.
        labels: The ids the model has to produce, ``IGNORE_INDEX`` elsewhere.
        image: Path of the picture, or None.
        caption: The caption's ids and span, or None.
        retrieved: The retrieved text's ids and span, or None.
        companion: A row that goes into the same batch, or None (``tgalign.data.companions``).
        question: The half-open range of ``input_ids`` that is averaged in the picture's place, or
            None: the picture is.
    """

    input_ids: list[int]
    labels: list[int]
    image: Path | None
    caption: Span | None
    retrieved: Span | None
    companion: EncodedRecord | None = None
    question: tuple[int, int] | None = None


GuideSpan = Literal["picture", "question", "question_words"]
"""Whose mean states are guided: the picture's, or those of the question read after it: up to the
answer, or without what the template writes between the two."""


class Encoder:
    """Encode records for one checkpoint.

    Args:
        tokenizer: A fast tokenizer with a chat template that knows image items.
        image_seq_length: Image tokens per picture (``config.image_seq_length``).
        max_length: Longest conversation in tokens.
        retrieved_in_prompt: Share of the rows with an R in which it stands before the image in the
            first user turn; which rows these are depends on nothing but their number.
        guide_span: Which tokens are averaged (``TrainConfig``).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_seq_length: int,
        *,
        max_length: int,
        retrieved_in_prompt: float,
        guide_span: GuideSpan = "picture",
    ) -> None:
        self.tokenizer = tokenizer
        self.image_seq_length = image_seq_length
        self.max_length = max_length
        self.retrieved_in_prompt = retrieved_in_prompt
        self.guide_span = guide_span
        self._image_id: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._template = ChatTemplate(tokenizer)
        self._other = self._template.render(_one_turn("\0"))

    def encode(self, record: Record) -> EncodedRecord:
        """Encode one record.

        Raises:
            ValueError: The row is too long, or has nothing to learn from.
        """
        ids, labels = self._conversation(record)
        read = None if self.guide_span == "picture" else record.messages[0][1]
        caption = self._span(record.caption, read) if record.image else None
        retrieved = self._span(record.retrieved, read) if caption and record.retrieved else None
        spans = [span for span in (caption, retrieved) if span is not None]
        longest = max([len(ids), *(len(span.input_ids) for span in spans)])
        if longest > self.max_length:
            raise ValueError(
                f"{longest} tokens, more than the limit of {self.max_length}: shorten the row or "
                "raise max_length (rows are never cut, as a cut could fall inside the image)"
            )
        if caption is None and all(label == IGNORE_INDEX for label in labels):
            raise ValueError("no token to learn and no caption to align to")
        if caption is None or read is None:
            return EncodedRecord(ids, labels, record.image, caption, retrieved)
        start, end = self._question(ids, labels)
        alike = _read_alike([ids[start:end], *(it.input_ids[it.start :] for it in spans)])
        after = len(caption.input_ids) - caption.end
        if alike <= after:
            raise ValueError("nothing is read between the picture and the answer: no question")
        caption, retrieved = (
            it and Span(it.input_ids[: it.end], it.end + after - alike, it.end)
            for it in (caption, retrieved)
        )
        question = end - alike, end - after
        return EncodedRecord(ids, labels, record.image, caption, retrieved, question=question)

    def has_unknown(self, row: EncodedRecord) -> bool:
        """Whether the tokenizer lacks a word that is learnt, or averaged, or read before that."""
        unknown: Any = self.tokenizer.unk_token_id
        if unknown is None or unknown in (
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
        ):  # as of GPT-2, which writes every byte
            return False
        told = [span for span in (row.caption, row.retrieved) if span is not None]
        if row.question is not None:  # its states are those of a text read before it
            told = [replace(span, start=0) for span in told]
        return unknown in row.labels or any(
            unknown in span.input_ids[span.start : span.end] for span in told
        )

    def encode_all(
        self, records: Iterable[Record], file: str
    ) -> tuple[list[EncodedRecord], list[Problem]]:
        """Encode many records; rows that cannot be encoded come back as problems."""
        encoded, problems = [], []
        for record in records:
            try:
                encoded.append(self.encode(record))
            except ValueError as fault:
                problems.append(Problem(file, record.row, str(fault)))
        return encoded, problems

    def _conversation(self, record: Record) -> tuple[list[int], list[int]]:
        turns: list[dict[str, Any]] = []
        for number, (role, content) in enumerate(record.messages):
            items = [{"type": "text", "text": as_words(self.tokenizer, content)}]
            if number == 0 and record.image is not None:
                items.insert(0, {"type": "image"})
                if record.retrieved and self._draw(record.row) < self.retrieved_in_prompt:
                    text = RETRIEVED_PROMPT.format(text=as_words(self.tokenizer, record.retrieved))
                    items.insert(0, {"type": "text", "text": text})
            turns.append({"role": role, "content": items})
        text, learnt = self._template.render_learnt(turns)
        if not learnt and self.guide_span != "picture":
            text = self._template.render(turns, add_generation_prompt=True)
        starts = [start for start, _ in learnt]
        ids, labels = [], []
        for token, (start, end) in zip(*self._tokens(text), strict=True):
            repeats = self.image_seq_length if token == self._image_id else 1
            turn = bisect.bisect_right(starts, start) - 1
            inside = end > start and turn >= 0 and end <= learnt[turn][1]
            ids += [token] * repeats
            labels += [token if inside else IGNORE_INDEX] * repeats
        return ids, labels

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        batch = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return batch["input_ids"], batch["offset_mapping"]

    @staticmethod
    def _draw(row: int) -> float:
        """A fixed number in [0, 1) for a row."""
        # A checksum such as CRC-32 would favour some last digits and never two rows in a row.
        return int.from_bytes(hashlib.sha256(str(row).encode()).digest()[:4]) / 2**32

    def _question(self, ids: list[int], labels: list[int]) -> tuple[int, int]:
        """What is read after the picture and before the first answer."""
        start = len(ids) - ids[::-1].index(self._image_id)
        learnt = (at for at, label in enumerate(labels) if label != IGNORE_INDEX)
        return start, next(learnt, len(ids))

    def _span(self, text: str | None, question: str | None = None) -> Span | None:
        """A text where the image would stand; nothing after it can change its states (causal).

        With a question, the question and what the template adds are the span, not the text.
        """
        if text is None:
            return None
        text = as_words(self.tokenizer, text)
        # Where two texts begin to differ, not where the template may write the same words itself.
        rendered = self._template.render(_one_turn(text))
        pairs = enumerate(zip(rendered, self._other, strict=False))
        first = next((at for at, (ours, theirs) in pairs if ours != theirs), len(rendered))
        if not rendered.startswith(text, first):
            raise ValueError(
                f"the chat template changes the text {text[:40]!r}: no span to average"
            )
        last = first + len(text)
        if question is not None:
            items = [text, as_words(self.tokenizer, question)]
            content = [{"type": "text", "text": it} for it in items]
            rendered = self._template.render(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            ids, offsets = self._tokens(rendered)
            end = len(rendered)
            if self.guide_span == "question_words":
                end = _end_of_question(items[1], rendered, last)
            return Span(ids, _first_from(last, offsets), _first_from(end, offsets))
        ids, offsets = self._tokens(rendered)
        inside = [
            number
            for number, (start, end) in enumerate(offsets)
            if end > start and start < last and end > first
        ]
        if not inside:
            raise ValueError(f"the text {text[:40]!r} has no token")
        return Span(ids[: inside[-1] + 1], inside[0], inside[-1] + 1)


def _end_of_question(question: str, rendered: str, after: int) -> int:
    """Where a question ends in what a template made, looked for from a place on.

    Raises:
        ValueError: It does not stand there.
    """
    words = question.strip()  # as some templates do
    start = rendered.find(words, after)
    if start < 0:
        raise ValueError(
            f"the chat template changes the question {words[:40]!r}: no span to average"
        )
    return start + len(words)


def _first_from(place: int, offsets: list[tuple[int, int]]) -> int:
    """The first token that begins at a place of the text or after it."""
    found = (number for number, (start, _) in enumerate(offsets) if start >= place)
    return next(found, len(offsets))


def _read_alike(sequences: list[list[int]]) -> int:
    """How many last tokens are the same in all: some tokenizers join a text to what follows."""
    pairs = enumerate(zip(*(reversed(it) for it in sequences), strict=False))
    differing = (number for number, tokens in pairs if len(set(tokens)) > 1)
    return next(differing, min(map(len, sequences)))


def _one_turn(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]
