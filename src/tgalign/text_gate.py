"""The text gate: the language model itself says which pictures it should not answer about.

Web data describes toxic pictures plainly, and cross-entropy on those answers teaches the model to
answer where it would refuse in words. Before training, the gate asks the untrained language model:
told the caption in the picture's place, does it refuse the record's question? If so, the record's
answers are not learnt, and its picture and caption, which still reach the guide loss, can be shown
more often (``companions``). Nobody labels a picture, and no refusal is trained.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tgalign.data.encode import EncodedRecord
from tgalign.data.records import DEFAULT_QUESTION, Record
from tgalign.evaluate.generate import Prompt, answer
from tgalign.evaluate.refusal import judge


def refuses(
    model: Any,
    processor: Any,
    captions: Sequence[str],
    questions: Sequence[str],
    *,
    title: str | None = None,
) -> list[bool]:
    """Whether the language model refuses each question, told a caption in the picture's place.

    Args:
        model: A LLaVA whose language model is not trained yet.
        processor: Its processor.
        captions: The captions.
        questions: One for each.
        title: Of a progress bar; None: there is none.
    """
    prompts = [Prompt(q, caption=c) for q, c in zip(questions, captions, strict=True)]
    said = answer(model, processor, prompts, batch_size=256, title=title)
    return [
        judge(text, question).label == "refused"
        for text, question in zip(said, questions, strict=True)
    ]


def apply_text_gate(
    records: list[Record], model: Any, processor: Any, *, progress_bar: bool = False
) -> tuple[list[Record], list[Record]]:
    """Drop the answers of the records that the language model refuses in words.

    Args:
        records: The alignment data. Rows with a picture and a caption are asked about, each by its
            first question.
        model: A LLaVA whose language model is not trained yet.
        processor: Its processor.
        progress_bar: Whether to draw one.

    Returns:
        The records, those refused without any turn after the first question; and the refused ones
        again, by themselves.
    """
    asked = [it for it in records if it.image is not None and it.caption is not None]
    verdicts = refuses(
        model,
        processor,
        [it.caption or "" for it in asked],
        [it.messages[0][1] for it in asked],
        title="text gate" if progress_bar else None,
    )
    refused = {it.row for it, verdict in zip(asked, verdicts, strict=True) if verdict}
    gated = [replace(it, messages=it.messages[:1]) if it.row in refused else it for it in records]
    return gated, [it for it in gated if it.row in refused]


def refused_texts(
    texts: list[str],
    records: list[Record],
    model: Any,
    processor: Any,
    *,
    progress_bar: bool = False,
) -> list[str]:
    """The texts of a corpus that the language model refuses, asked what most pictures are asked.

    Args:
        texts: The corpus.
        records: The alignment data, which holds the questions.
        model: A LLaVA whose language model is not trained yet.
        processor: Its processor.
        progress_bar: Whether to draw one.
    """
    asked = Counter(it.messages[0][1] for it in records if it.image is not None)
    question = asked.most_common(1)[0][0] if asked else DEFAULT_QUESTION
    title = "text gate, corpus" if progress_bar else None
    verdicts = refuses(model, processor, texts, [question] * len(texts), title=title)
    return [text for text, verdict in zip(texts, verdicts, strict=True) if verdict]


def with_companions(
    rows: list[EncodedRecord], companions: list[EncodedRecord], share: float
) -> list[EncodedRecord]:
    """Give a share of the rows another one that goes into the same batch, always the same.

    So every arm learns the same records at the same step, with companions or without.

    Args:
        rows: The rows of a stage.
        companions: What to put beside them; none: the rows stay as they are.
        share: Share of the rows that get one.
    """

    def draw(number: int) -> tuple[float, int]:
        digest = hashlib.sha256(f"companion-{number}".encode()).digest()
        return int.from_bytes(digest[:4]) / 2**32, int.from_bytes(digest[4:12])

    if not companions:
        return rows
    paired = []
    for number, row in enumerate(rows):
        drawn, which = draw(number)
        companion = companions[which % len(companions)] if drawn < share else None
        paired.append(replace(row, companion=companion))
    return paired
