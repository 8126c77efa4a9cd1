"""Ask one model everything that the comparison asks, and keep every answer with its verdict.

Items, not only counts: methods are compared on the same items, pair by pair.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from tgalign.evaluate.generate import Prompt, answer
from tgalign.lab.jailbreaks import ATTACKS, jailbreak
from tgalign.lab.outcomes import Item, picture_item, text_item
from tgalign.lab.suite import QUESTION, LabSuite


def ask_all(model: Any, processor: Any, suite: LabSuite) -> list[Item]:
    """Answer a suite's pictures, plain and under attack, and its texts, and judge every answer.

    Args:
        model: A LLaVA of the lab, defended or not.
        processor: Its processor.
        suite: What to ask.
    """
    shown = suite.toxic + suite.benign
    items: list[Item] = []
    for kind in ("plain", *ATTACKS):
        prompts = [
            jailbreak(kind, it.picture) if kind in ATTACKS else Prompt(QUESTION, it.picture)
            for it in shown
        ]
        said = answer(model, processor, prompts)
        items += [picture_item(it, text, kind) for it, text in zip(shown, said, strict=True)]
    said = answer(model, processor, [Prompt(example.prompt) for example in suite.texts])
    pairs = zip(suite.texts, said, strict=True)
    return items + [text_item(number, *pair) for number, pair in enumerate(pairs)]


def answering_seconds(model: Any, processor: Any, prompts: list[Prompt], *, rounds: int) -> float:
    """Median seconds to answer prompts, of several rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        answer(model, processor, prompts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
