"""Greedy answers from a LLaVA or its language side, in left-padded batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Prompt:
    """One user turn: a text, and before it a picture or a caption in the picture's place."""

    text: str
    picture: Image | None = None
    caption: str | None = None


@torch.no_grad()
def answer(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    title: str | None = None,
) -> list[str]:
    """Answer prompts through the checkpoint's own chat template, greedily.

    Args:
        model: A ``LlavaForConditionalGeneration``.
        processor: Its processor.
        prompts: The prompts; those with and without a picture may be mixed.
        batch_size: Prompts per batch.
        max_new_tokens: Length at which an answer is cut.
        title: Of a progress bar; None: there is none.

    Returns:
        The answers without special tokens, in the order of the prompts.
    """
    texts = [_render(processor, prompt) for prompt in prompts]
    # Pictures and plain texts cannot share a batch; within each kind, short goes with short.
    order = sorted(
        range(len(prompts)), key=lambda i: (prompts[i].picture is None, len(texts[i]), i)
    )
    answers = [""] * len(prompts)
    model.eval()
    batches = _batches(order, prompts, batch_size)
    for batch in track(batches, description=title or "", disable=title is None):
        pictures = [prompts[i].picture for i in batch if prompts[i].picture is not None]
        inputs = processor(
            text=[texts[i] for i in batch],
            images=[[picture] for picture in pictures] or None,  # as all processors take them
            padding=True,
            return_tensors="pt",
            text_kwargs={"padding_side": "left", "add_special_tokens": False},
        )
        inputs.pop("token_type_ids", None)
        inputs = inputs.to(model.device, dtype=model.dtype)  # integers stay what they are
        generated = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )
        new = generated[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(
            batch, processor.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            answers[i] = text.strip()
    return answers


def _render(processor: Any, prompt: Prompt) -> str:
    items: list[dict[str, str]] = [{"type": "text", "text": prompt.text}]
    if prompt.picture is not None:
        items.insert(0, {"type": "image"})
    if prompt.caption is not None:
        items.insert(0, {"type": "text", "text": prompt.caption})
    turn = [{"role": "user", "content": items}]
    return str(processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def _batches(order: list[int], prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in order:
        same = (
            batches
            and len(batches[-1]) < size
            and (prompts[batches[-1][0]].picture is None) == (prompts[i].picture is None)
        )
        if same:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
