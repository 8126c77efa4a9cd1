"""Hidden states of pictures and of their captions, and the logit lens, from one forward each.

Shape suffixes: L layers, B rows, T tokens, D channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgalign.pooling import pool_layers


@dataclass(frozen=True)
class LayerProbe:
    """What a model holds of prompts, by layer; state 0 is the embeddings, state N after the norm.

    Attributes:
        span_LBD: Mean hidden state over the image's or the caption's tokens.
        lens_LBV: Next-token probabilities read off the answer position at each layer: final norm
            and output head applied to the state (the last state is normed already).
    """

    span_LBD: Tensor
    lens_LBV: Tensor


@torch.no_grad()
def probe_pictures(
    model: Any, processor: Any, pictures: Sequence[Any], question: str
) -> LayerProbe:
    """Probe pictures, each followed by a question."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = processor(
        text=[text] * len(pictures),
        images=list(pictures),
        padding=True,
        return_tensors="pt",
        text_kwargs={"padding_side": "right", "add_special_tokens": False},
    )
    inputs.pop("token_type_ids", None)
    span_BT = inputs["input_ids"] == model.config.image_token_id
    return _probe(model, dict(inputs), span_BT)


@torch.no_grad()
def probe_texts(model: Any, processor: Any, captions: Sequence[str], question: str) -> LayerProbe:
    """Probe captions that stand where a picture would, each followed by the same question."""
    tokenizer = processor.tokenizer
    texts, spans = [], []
    for caption in captions:
        items = [{"type": "text", "text": caption}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": items}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        texts.append(text)
        spans.append((text.find(caption), text.find(caption) + len(caption)))
    batch = tokenizer(
        texts,
        add_special_tokens=False,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    offsets = batch["offset_mapping"]
    low, high = (torch.tensor(ends)[:, None] for ends in zip(*spans, strict=True))
    span_BT = (offsets[..., 0] < high) & (offsets[..., 1] > low)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return _probe(model, inputs, span_BT)


def refusal_probability(lens_LBV: Tensor, refusal_ids: Sequence[int]) -> Tensor:
    """Probability by layer and prompt (L, B) that the answer opens with a refusal's first token."""
    return lens_LBV[..., list(refusal_ids)].sum(dim=-1)


def _probe(model: Any, inputs: dict[str, Tensor], span_BT: Tensor) -> LayerProbe:
    model.eval()
    outputs = model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1)
    states = outputs.hidden_states
    span_LBD, _ = pool_layers(states, list(range(len(states))), span_BT)
    last_B = inputs["attention_mask"].sum(dim=1) - 1
    rows_B = torch.arange(len(last_B))
    norm = model.model.language_model.norm
    lens = []
    for layer, state_BTD in enumerate(states):
        state_BD = state_BTD[rows_B, last_B]
        if layer < len(states) - 1:
            state_BD = norm(state_BD)
        lens.append(model.lm_head(state_BD).float().softmax(dim=-1))
    return LayerProbe(span_LBD, torch.stack(lens))
