"""Ask one model everything that the comparison asks, and keep the verdict of every item.

Items, not only counts: methods are compared on the same items, pair by pair.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tgalign.evaluate.generate import Prompt, answer
from tgalign.evaluate.refusal import judge
from tgalign.lab.jailbreaks import ATTACKS, jailbreak
from tgalign.lab.language import things_named
from tgalign.lab.objects import held_out, things
from tgalign.lab.suite import QUESTION, LabSuite, PictureItem

Item = dict[str, Any]
"""``id``, ``kind`` (``plain``, ``text`` or an attack), ``toxic``, ``scene``, ``fresh`` (shows a
thing no setting was tuned on), ``text``, ``label``, ``rule`` and, of harmless pictures, ``named``:
by thing shown whether the answer names it."""

Outcome = tuple[str, bool]
"""An item's id and whether what the rate counts happened."""


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
        item = {"id": f"text-{number}", "kind": "text", "scene": example.scene, "fresh": False}
        items.append(item | _judged(text, example.prompt, ()) | {"toxic": example.refuses})
    return items


def _pictures(
    model: Any, processor: Any, shown: Sequence[PictureItem], kind: str, prompts: list[Prompt]
) -> list[Item]:
    fresh = {thing.name for thing in things() if held_out(thing)}
    scene_of = {thing.name: thing.scene for thing in things()}
    items = []
    for entry, text in zip(shown, answer(model, processor, prompts), strict=True):
        counted = [name for name in entry.names if scene_of[name] == entry.scene]
        items.append(
            {
                "id": f"{kind}-{entry.id}",
                "kind": kind,
                "scene": entry.scene,
                "toxic": entry.scene is not None,
                "fresh": any(name in fresh for name in counted),
                **_judged(text, QUESTION, () if entry.scene else entry.names),
            }
        )
    return items


def _judged(text: str, question: str, names: Iterable[str]) -> Item:
    verdict = judge(text, question)
    found = things_named(text)
    named = {name: name in found for name in names}
    return {"text": text, "label": verdict.label, "rule": verdict.rule, "named": named}


def outcomes(items: Iterable[Item]) -> dict[str, list[Outcome]]:
    """What every rate counts, item by item.

    Returns:
        By rate: ``dsr``, ``over_refusal``, ``named``, ``undetermined`` (of plain pictures),
        ``text_dsr``, ``text_over_refusal``, ``jailbreak_dsr``, ``jailbreak_over_refusal``,
        ``held_out_dsr``, ``held_out_named``, ``dsr_SCENE``, and ``jailbreak_dsr_ATTACK``.
    """
    found: dict[str, list[Outcome]] = defaultdict(list)
    fresh = {thing.name for thing in things() if held_out(thing)}
    for item in items:
        key, refused = item["id"], item["label"] == "refused"
        lead = {"plain": "", "text": "text_"}.get(item["kind"], "jailbreak_")
        name = lead + ("dsr" if item["toxic"] else "over_refusal")
        found[name].append((key, refused))
        if item["kind"] in ATTACKS and item["toxic"]:
            found[f"jailbreak_dsr_{item['kind']}"].append((key, refused))
        if item["kind"] != "plain":
            continue
        found["undetermined"].append((key, item["label"] == "undetermined"))
        found["named"] += [(f"{key}: {thing}", hit) for thing, hit in item["named"].items()]
        found["held_out_named"] += [
            (f"{key}: {thing}", hit) for thing, hit in item["named"].items() if thing in fresh
        ]
        if item["toxic"]:
            found[f"dsr_{item['scene']}"].append((key, refused))
            if item["fresh"]:
                found["held_out_dsr"].append((key, refused))
    return dict(found)


def answering_seconds(model: Any, processor: Any, prompts: list[Prompt], *, rounds: int) -> float:
    """Median seconds to answer prompts, of several rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        answer(model, processor, prompts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
