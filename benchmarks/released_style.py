"""A training step in the style of the code that the paper's authors released, written anew.

What it has of ``modeling_mistral_rag_mlp_fusion.py`` (xsc1234/VLM_Safety_Transfer): a second pass
for the captions, through the whole model with its output head; every hidden state and every
attention map of both passes; the retrieved text's states taken from the prompt, before the image;
a Python loop over rows and layers; ``1 - r`` times the exponential terms. What it has not: the
``math.exp`` that cuts the gradient, and averages over padding.

Shape suffixes: B rows, T tokens, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def released_step(
    model: Any, batch: dict[str, Tensor], layers: list[int], template: int, progress: float = 0.0
) -> dict[str, Tensor]:
    """The losses of one batch whose rows have picture, caption and, in the prompt, retrieved text.

    Args:
        model: A LLaVA with eager attention, which alone returns attention maps.
        batch: What the collator makes.
        layers: The hidden states that are aligned.
        template: Tokens before the retrieved text.
        progress: Share of the training already done.

    Returns:
        ``loss``, and its parts ``ce``, ``pair`` and ``hinge``.
    """
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        pixel_values=batch["pixel_values"],
        labels=batch["labels"],
        output_hidden_states=True,
        output_attentions=True,
        use_cache=False,
    )
    captions = len(batch["input_ids"])
    model.eval()
    with torch.no_grad():
        texts = model(
            input_ids=batch["text_input_ids"][:captions],
            attention_mask=batch["text_attention_mask"][:captions],
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )
    model.train()
    pair: list[Tensor] = []
    hinge: list[Tensor] = []
    for row in range(captions):
        image_T = batch["input_ids"][row] == model.config.image_token_id
        first = int(image_T.nonzero()[0])
        caption_T = batch["text_span"][row]
        for layer in layers:
            states_TD = outputs.hidden_states[layer][row]
            image_D = states_TD[image_T].mean(0)
            retrieved_D = states_TD[template:first].mean(0)
            caption_D = texts.hidden_states[layer][row][caption_T].mean(0)
            image_caption = cosine_similarity(image_D, caption_D, dim=0)
            retrieved_caption = cosine_similarity(retrieved_D, caption_D, dim=0)
            pair.append(torch.exp(-image_caption))
            hinge.append(torch.exp(retrieved_caption - image_caption))
    left = 1 - progress
    parts = {
        "ce": outputs.loss,
        "pair": 0.25 * left * torch.stack(pair).mean(),
        "hinge": 0.1 * left**2 * torch.stack(hinge).mean(),
    }
    return parts | {"loss": parts["ce"] + parts["pair"] + parts["hinge"]}
