"""The text gate: learn no answer about a picture whose caption the language model refuses.

Web data describes toxic pictures plainly, and cross-entropy on those answers teaches the model to
answer where it would refuse in words. The gate asks the language model itself, before training:
told the caption in the picture's place, does it refuse the record's question? If so, the record's
answers are not learnt; picture and caption still reach the guide loss. Nobody labels a picture, and
no refusal is trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgalign.data.records import Record
from tgalign.evaluate.generate import Prompt, answer
from tgalign.evaluate.refusal import judge


def apply_text_gate(
    records: list[Record], model: Any, processor: Any
) -> tuple[list[Record], dict[str, int]]:
    """Drop the answers of the records that the language model refuses in words.

    Args:
        records: The alignment data. Only rows with a picture, a caption and an answer are asked
            about, each by its first question.
        model: A LLaVA whose language model is not trained yet.
        processor: Its processor.

    Returns:
        The records, those refused without any turn after the first question; and how many the
        language model was asked about, refused, answered and left undetermined.
    """
    asked = [
        number
        for number, it in enumerate(records)
        if it.image is not None and it.caption is not None and len(it.messages) > 1
    ]
    questions = [records[number].messages[0][1] for number in asked]
    said = answer(
        model,
        processor,
        [
            Prompt(question, caption=records[number].caption)
            for number, question in zip(asked, questions, strict=True)
        ],
        batch_size=256,
    )
    counts = {"asked": len(asked), "refused": 0, "answered": 0, "undetermined": 0}
    gated = list(records)
    for number, question, text in zip(asked, questions, said, strict=True):
        label = judge(text, question).label
        counts[label] += 1
        if label == "refused":
            gated[number] = replace(records[number], messages=records[number].messages[:1])
    return gated, counts
