"""Prompts with a picture, and with its caption in the picture's place, for any family.

Shape suffixes: B rows, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tgalign.data.rendering import as_words
from tgalign.errors import UserError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Prompts:
    """A batch for the model, on its device.

    Attributes:
        inputs: What the model's forward takes.
        span_BT: True on the tokens of the image, or of the caption in its place.
        last_B: Index of the answer position, the last token of each prompt.
        offsets_BT2: Where each token of a caption's prompt begins and ends within the caption, in
            characters; negative or beyond its end outside of it. None with pictures.
    """

    inputs: dict[str, Tensor]
    span_BT: Tensor
    last_B: Tensor
    offsets_BT2: Tensor | None = None

    @property
    def length(self) -> int:
        """T."""
        return int(self.span_BT.shape[1])


def picture_prompts(
    model: Any, processor: Any, pictures: Sequence[Any], question: str, side: Side = "left"
) -> Prompts:
    """Pictures, each followed by a question.

    Args:
        model: The model, from which device, dtype and image token are taken.
        processor: Its processor.
        pictures: RGB pictures.
        question: What is asked about them.
        side: Where shorter rows are padded: left to generate, right for a plain forward.

    Raises:
        UserError: The processor leaves a picture without any image token, or the question holds a
            special token.
    """
    _require_words(processor, question)
    text = _render(processor, question, picture=True)
    batch = processor(
        text=[text] * len(pictures),
        images=[[picture] for picture in pictures],
        padding=True,
        return_tensors="pt",
        text_kwargs={"padding_side": side, "add_special_tokens": _needs_bos(processor, text)},
    )
    span_BT = batch["input_ids"] == model.config.image_token_id
    if not span_BT.any(dim=1).all():
        raise UserError(
            f"{type(processor).__name__} writes no image token (id {model.config.image_token_id}) "
            "for a picture, so its place among the tokens cannot be found"
        )
    return _prompts(model, dict(batch), span_BT)


def caption_prompts(
    model: Any, processor: Any, captions: Sequence[str], question: str, side: Side = "left"
) -> Prompts:
    """Captions that stand where a picture would, each followed by the same question.

    Args:
        model: The model.
        processor: Its processor.
        captions: The captions.
        question: What is asked about them.
        side: Where shorter rows are padded.

    Raises:
        UserError: The tokenizer does not tell where its tokens lie, the chat template changes a
            caption, or a text holds a special token or no token.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell where its tokens lie in a text: a fast "
            "tokenizer (tokenizer.json) is needed"
        )
    for words in (question, *captions):
        _require_words(processor, words)
    start = _render(processor, f"\0\n{question}", picture=False).find("\0")
    texts = []
    for caption in captions:
        text = _render(processor, f"{caption}\n{question}", picture=False)
        if start < 0 or not text.startswith(caption, start):
            raise UserError(f"the chat template changes the caption {caption[:40]!r}")
        texts.append(text)
    batch = dict(
        tokenizer(
            texts,
            add_special_tokens=_needs_bos(processor, texts[0]),
            padding=True,
            padding_side=side,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
    )
    offsets_BT2 = batch.pop("offset_mapping") - start
    length_B1 = torch.tensor([[len(caption)] for caption in captions])
    span_BT = (offsets_BT2[..., 0] < length_B1) & (offsets_BT2[..., 1] > 0)
    span_BT &= (offsets_BT2[..., 1] > offsets_BT2[..., 0]) & batch["attention_mask"].bool()
    for row, caption in enumerate(captions):
        if not span_BT[row].any():
            raise UserError(f"the caption {caption[:40]!r} has no token")
    return _prompts(model, batch, span_BT, offsets_BT2)


def _prompts(
    model: Any, batch: dict[str, Tensor], span_BT: Tensor, offsets_BT2: Tensor | None = None
) -> Prompts:
    taken = set(inspect.signature(model.forward).parameters) - {"labels"}
    # Without, transformers reads a text in both directions (as PaliGemma was trained) or in one,
    # depending on whether its batch has padding.
    batch.setdefault("token_type_ids", torch.zeros_like(batch["input_ids"]))
    inputs = {
        name: (value.to(model.dtype) if value.is_floating_point() else value).to(model.device)
        for name, value in batch.items()
        if name in taken
    }
    mask_BT = batch["attention_mask"]
    last_B = (mask_BT * torch.arange(mask_BT.shape[1])).argmax(dim=1)
    return Prompts(inputs, span_BT.to(model.device), last_B.to(model.device), offsets_BT2)


def _require_words(processor: Any, text: str) -> None:
    """Refuse a text that the tokenizer would read as more than words."""
    if as_words(processor.tokenizer, text) != text:
        raise UserError(
            f"{text[:40]!r} holds a special token of the model, such as the image token: remove it"
        )


def _render(processor: Any, text: str, *, picture: bool) -> str:
    """One user turn, by the chat template or, for models that have none, bare."""
    owner = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    if owner.chat_template is None:
        # PaliGemma's processor adds <bos> and the line end after a picture, and nothing without.
        if picture:
            return f"{processor.image_token}{text}"
        return f"{processor.tokenizer.bos_token}{text}\n"
    items = [{"type": "text", "text": text}]
    if picture:
        items.insert(0, {"type": "image"})
    turn = [{"role": "user", "content": items}]
    try:
        return str(owner.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as fault:  # templates raise what they like
        raise UserError(f"the chat template refuses a prompt: {fault}") from None


def _needs_bos(processor: Any, text: str) -> bool:
    """Whether the tokenizer has to add what the template did not write, as transformers decides."""
    bos = processor.tokenizer.bos_token
    return bos is None or not text.startswith(bos)
