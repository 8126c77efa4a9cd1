"""Ask one model everything that the comparison asks, and keep every answer with its verdict.

Items, not only counts: methods are compared on the same items, pair by pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from tgalign.baselines.outcomes import Item, judged
from tgalign.evaluate.generate import Prompt, answer
from tgalign.lab.jailbreaks import ATTACKS, jailbreak
from tgalign.lab.objects import held_out, things
from tgalign.lab.suite import QUESTION, LabSuite, PictureItem


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
        items += _pictures(model, processor, shown, kind, prompts)
    said = answer(model, processor, [Prompt(example.prompt) for example in suite.texts])
    for number, (example, text) in enumerate(zip(suite.texts, said, strict=True)):
        item: Item = {
            "id": f"text-{number}",
            "kind": "text",
            "scene": example.scene,
            "fresh": False,
        }
        item |= {"toxic": example.refuses, "question": example.prompt, "text": text, "named": {}}
        items.append(judged(item))
    return items


def _pictures(
    model: Any, processor: Any, shown: Sequence[PictureItem], kind: str, prompts: list[Prompt]
) -> list[Item]:
    fresh = {thing.name for thing in things() if held_out(thing)}
    scene_of = {thing.name: thing.scene for thing in things()}
    items = []
    for entry, text in zip(shown, answer(model, processor, prompts), strict=True):
        counted = [name for name in entry.names if scene_of[name] == entry.scene]
        item = {
            "id": f"{kind}-{entry.id}",
            "kind": kind,
            "scene": entry.scene,
            "toxic": entry.scene is not None,
            "fresh": any(name in fresh for name in counted),
            "question": QUESTION,
            "text": text,
            "named": {} if entry.scene else dict.fromkeys(entry.names, False),
        }
        items.append(judged(item))
    return items


def answering_seconds(model: Any, processor: Any, prompts: list[Prompt], *, rounds: int) -> float:
    """Median seconds to answer prompts, of several rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        answer(model, processor, prompts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
