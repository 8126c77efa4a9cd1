"""Ask one model everything that the comparison asks, and keep every answer with its verdict.

Items, not only counts: methods are compared on the same items, pair by pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tgalign.evaluate.generate import Prompt, answer
from tgalign.evaluate.pictures import picture_hash
from tgalign.files import data_sha256
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
    said = {kind: answer(model, processor, asked) for kind, asked in _prompts(suite).items()}
    return _items(suite, said)


def asked_sha256(suite: LabSuite) -> str:
    """Hex digest of all that ``ask_all`` asks, and of what it keeps beside answers and verdicts."""
    asked = _prompts(suite)
    items = _items(suite, {kind: [""] * len(prompts) for kind, prompts in asked.items()})
    kept = [it | dict.fromkeys(("label", "rule")) for it in items]
    prompts = [
        (it.text, it.caption, it.turns, it.picture and picture_hash(it.picture))
        for it in chain.from_iterable(asked.values())
    ]
    return data_sha256([kept, prompts])


def _prompts(suite: LabSuite) -> dict[str, list[Prompt]]:
    """By kind what is asked: pictures, plain and under each attack, then texts."""
    shown = suite.toxic + suite.benign
    asked = {"plain": [Prompt(QUESTION, it.picture) for it in shown]}
    asked |= {kind: [jailbreak(kind, it.picture) for it in shown] for kind in ATTACKS}
    return asked | {"text": [Prompt(example.prompt) for example in suite.texts]}


def _items(suite: LabSuite, said: Mapping[str, Sequence[str]]) -> list[Item]:
    """The items of a suite with the answers to ``_prompts``."""
    shown = suite.toxic + suite.benign
    items = [
        picture_item(it, text, kind)
        for kind in ("plain", *ATTACKS)
        for it, text in zip(shown, said[kind], strict=True)
    ]
    pairs = zip(suite.texts, said["text"], strict=True)
    return items + [text_item(number, *pair) for number, pair in enumerate(pairs)]


def answering_seconds(model: Any, processor: Any, prompts: list[Prompt], *, rounds: int) -> float:
    """Median seconds to answer prompts, of several rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        answer(model, processor, prompts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
