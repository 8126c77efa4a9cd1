"""A safety prompt before the first user turn: the cheapest defence there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tgalign.baselines.defence import Calibration
from tgalign.baselines.method import Defence
from tgalign.evaluate.generate import before


@contextmanager
def around(model: Any, processor: Any, calibration: Calibration) -> Iterator[None]:
    """Put the safety prompt before whatever the first user turn holds.

    It stands in the user turn, since not every chat template has a system turn.

    Args:
        model: A LLaVA; it stays as it is.
        processor: Its processor, whose ``apply_chat_template`` is wrapped while in the context.
        calibration: Its ``safety_prompt`` is used; no threshold is set.
    """
    mine, render = processor.__dict__.get("apply_chat_template"), processor.apply_chat_template

    def defended(conversation: list[dict[str, Any]], **options: Any) -> Any:
        first, *rest = conversation
        content = first["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        items = before(calibration.safety_prompt, items)
        return render([{**first, "content": items}, *rest], **options)

    processor.apply_chat_template = defended
    try:
        yield
    finally:
        if mine is None:
            del processor.apply_chat_template
        else:
            processor.apply_chat_template = mine


METHOD = Defence(
    paper="Common practice; AdaShield, ECCV 2024, arXiv 2403.09513, is its best known form",
    what="Tells the model before every question to refuse what is harmful.",
    departure="One static prompt. In the lab it is made of the few words that the lab's tokenizer "
    "knows, so it is a weak form.",
    around=around,
)
